"""Small trainings with several frameworks, started by tests/end_to_end/test_frameworks.py.

Usage: frameworks.py NAME DATASET DIRECTORY

The function of a framework trains for two epochs, saves a checkpoint in the second epoch, and
resumes from it with new objects. `mesh` only reads batches. Every rank writes its results to the
directory.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader

import npstream
import npstream.torch
import torch

EPOCHS, STEPS = 2, 8  # steps of an epoch
SAVED_STEP = 11  # the checkpoint is saved in the second epoch
LIMIT = 5  # batches of a shortened epoch
ACCUMULATION = 3  # batches; not a divisor of an epoch
SETTINGS = {"batch_size": 4, "shuffle": True, "seed": 5}


class Model(torch.nn.Module):
    """A linear model that records the numbers of its samples."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.batches = []

    def forward(self, x, y, number, text=None):
        self.batches.append(number.tolist())
        return {"loss": torch.nn.functional.mse_loss(self.layer(x)[:, 0], y)}


def error_message(function):
    """Return the message of the RuntimeError that a function raises, or None."""
    try:
        function()
    except RuntimeError as error:
        return str(error)
    return None


def move_batch(path, move):
    """Move a batch to a device; return its type, device, text and ids."""
    batch = move(next(iter(DataLoader(npstream.open(path).iter(0, 1, batch_size=3), None))))
    ids = batch.ids.tolist() if hasattr(batch, "ids") else None
    return [type(batch).__name__, batch["x"].device.type, list(batch["text"]), ids]


def lightning(path, directory):
    import lightning
    from lightning.fabric.utilities import move_data_to_device

    class Data(lightning.LightningDataModule):
        def __init__(self, workers):
            super().__init__()
            self.batches = npstream.open(path).iter(**SETTINGS)  # before the process group exists
            self.workers = workers

        def train_dataloader(self):
            return npstream.torch.DataLoader(self.batches, num_workers=self.workers)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.ids = Model(), []

        def training_step(self, batch):
            self.ids.append(batch.ids.tolist())
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    def train(workers, checkpoint=None, limit=None, every=SAVED_STEP):
        saver = lightning.pytorch.callbacks.ModelCheckpoint(
            directory, f"{limit}-{{step}}", every_n_train_steps=every, save_top_k=-1
        )
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=EPOCHS,
            limit_train_batches=limit,
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        trainer.fit(module, Data(workers), ckpt_path=checkpoint)
        assert module.ids == module.model.batches
        return module.ids

    return {
        "whole": train(workers=1),
        "resumed": train(0, directory / f"None-step={SAVED_STEP}.ckpt"),
        "limited": train(0, limit=LIMIT, every=1),
        "limited and resumed": [  # with 0 or 1 worker processes
            train(step % 2, directory / f"{LIMIT}-step={step}.ckpt", limit=LIMIT, every=100)
            for step in (LIMIT - 1, LIMIT, LIMIT + 1)
        ],
        "moved": move_batch(path, lambda batch: move_data_to_device(batch, "meta")),
    }


def fabric(path, directory):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()

    def train(checkpoint=None):
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        ddp, optimizer = fabric.setup(model, optimizer)
        loader = npstream.torch.DataLoader(npstream.open(path).iter(**SETTINGS))
        batches = fabric.setup_dataloaders(loader)
        state = {"model": ddp, "optimizer": optimizer, "loader": loader}
        if checkpoint is not None:
            fabric.load(checkpoint, state)
        while loader.epoch < EPOCHS:
            for batch in batches:
                fabric.backward(ddp(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
                if checkpoint is None and len(model.batches) == SAVED_STEP:
                    fabric.save(directory / "fabric.ckpt", state)
        return model.batches

    return {"whole": train(), "resumed": train(directory / "fabric.ckpt")}


def accelerate(path, directory):
    from accelerate import Accelerator, skip_first_batches
    from accelerate.utils import DataLoaderConfiguration, send_to_device

    ds = npstream.open(path)
    accelerator = Accelerator(cpu=True)

    def train(checkpoint=None):
        model = Model()
        loader = npstream.torch.DataLoader(ds.iter(**SETTINGS))
        parts = model, torch.optim.SGD(model.parameters(), 0.01), loader
        ddp, optimizer, prepared = accelerator.prepare(*parts)
        assert prepared is loader
        accelerator.register_for_checkpointing(loader)
        if checkpoint is not None:
            accelerator.load_state(checkpoint)
        while loader.state_dict()["epoch"] < EPOCHS:
            for batch in loader:
                accelerator.backward(ddp(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
                if checkpoint is None and len(model.batches) == SAVED_STEP:
                    accelerator.save_state(directory / "state")
        accelerator.free_memory()
        accelerator._custom_objects.clear()
        return model.batches

    def numbers(loader):
        return [batch["number"].tolist() for batch in loader]

    def read_prepared(*ranks, dispatch=None, batched=True, **options):
        accelerator.dataloader_config = DataLoaderConfiguration(dispatch_batches=dispatch)
        dataset = ds[["number"]].iter(*ranks, **SETTINGS, batched=batched)
        loader = DataLoader(dataset, None if batched else SETTINGS["batch_size"], **options)
        return numbers(accelerator.prepare(loader))

    def read_skipped():
        loader = npstream.torch.DataLoader(ds.iter(**SETTINGS))
        loader.set_epoch(1)
        return numbers(skip_first_batches(loader, SAVED_STEP - STEPS))

    sharded_options = {"dispatch": False, "batched": False}
    spawn_options = {"num_workers": 1, "multiprocessing_context": "spawn"}
    return {
        "whole": train(),
        "resumed": train(directory / "state"),
        # Accelerate would divide the batches of each rank a second time, so these three raise.
        "dispatched": error_message(read_prepared),
        "spawned": error_message(lambda: read_prepared(**spawn_options)),
        "sharded": error_message(lambda: read_prepared(**sharded_options)),
        "skipped": read_skipped(),
        "one reads for all": read_prepared(0, 1),
        "all read all": read_prepared(0, 1, **sharded_options),
        "moved": move_batch(path, lambda batch: send_to_device(batch, "meta")),
    }


def transformers(path, directory):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ds = npstream.open(path)

    class Streamed(Trainer):
        def get_train_dataloader(self):
            return self.train_dataset

    class SaveData(TrainerCallback):
        def on_save(self, args, state, control, train_dataloader, **kwargs):
            if state.is_world_process_zero:
                state_file = directory / f"checkpoint-{state.global_step}" / "data.json"
                state_file.write_text(json.dumps(train_dataloader.state_dict()))

    def run_training(checkpoint=None, kind=Streamed, load=True, save_steps=SAVED_STEP, **options):
        torch.manual_seed(0)
        model, data = Model(), ds.iter(**SETTINGS)
        if kind is Streamed:
            data = npstream.torch.DataLoader(data)
            if checkpoint is not None and load:
                data.load_state_dict(json.loads((checkpoint / "data.json").read_text()))
        arguments = TrainingArguments(
            str(directory),
            num_train_epochs=EPOCHS,
            save_steps=save_steps,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        trainer = kind(model, arguments, train_dataset=data, callbacks=[SaveData()])
        if "moved" not in results:
            results["moved"] = move_batch(path, trainer._prepare_input)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return model, trainer.state.global_step

    def train(*args, **options):
        return run_training(*args, **options)[0].batches

    def train_with_accumulation(*args, **options):
        model, steps = run_training(
            *args, gradient_accumulation_steps=ACCUMULATION, save_steps=1, **options
        )
        return [steps, model.layer.weight.tolist(), model.batches]

    results = {}
    whole = train()
    checkpoint = directory / f"checkpoint-{SAVED_STEP}"
    results |= {
        "whole": whole,
        "resumed": train(checkpoint),
        "nothing to skip": train(checkpoint, ignore_data_skip=True),
        "without a state": error_message(lambda: train(checkpoint, load=False)),
        "dispatched": error_message(lambda: train(kind=Trainer)),
    }
    # 60 samples do not fill the last batches of two ranks; 64 do.
    results["evaluated"] = {count: evaluate(Streamed, ds, directory, count) for count in (64, 60)}
    steps = -(-STEPS // ACCUMULATION)  # in an epoch
    results["accumulated"] = train_with_accumulation()
    results["accumulated and resumed"] = [
        train_with_accumulation(directory / f"checkpoint-{step}")
        for step in (steps - 1, steps, steps + 1)
    ]
    return results


def evaluate(trainer_class, ds, directory, count):
    """Return the Trainer's loss of the first `count` samples, and the loss of each sample."""
    from transformers import TrainingArguments

    class Evaluated(trainer_class):
        def get_eval_dataloader(self, eval_dataset=None):
            return npstream.torch.DataLoader(ds[:count].iter(batch_size=SETTINGS["batch_size"]))

    torch.manual_seed(0)
    model = Model()
    arguments = TrainingArguments(
        str(directory), use_cpu=True, report_to=[], disable_tqdm=True, label_names=["y"]
    )
    loss = Evaluated(model, arguments).evaluate(ds)["eval_loss"]
    samples = ds[:count].load().to_torch()
    with torch.no_grad():
        errors = (model.layer(samples["x"])[:, 0] - samples["y"]) ** 2
    return [loss, errors.tolist()]


def stub(*names):
    """Replace packages that Composer imports but this training does not use."""

    def anything(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__getattr__ = anything
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def composer(path, directory):
    os.environ["NODE_RANK"] = "0"  # as Composer's own launcher does, and torchrun does not
    stub("torchvision", "torchvision.datasets", "torchvision.models", "torchvision.models.resnet")
    stub("torchvision.ops", "torchvision.transforms", "torchvision.transforms.functional")
    stub("torchvision.utils", "mcli", "mcli.api", "mcli.api.runs", "mcli.sdk")
    from composer import ComposerModel, Trainer
    from composer.devices import DeviceCPU

    class Composed(ComposerModel):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def forward(self, batch):
            return self.model(**batch)

        def loss(self, outputs, batch):
            return outputs["loss"]

    def train(checkpoint=None):
        model = Composed()
        batches = npstream.open(path)[["x", "y", "number"]].iter(**SETTINGS)
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(batches, batch_size=None, num_workers=1),
            optimizers=torch.optim.SGD(model.parameters(), 0.01),
            max_duration=f"{EPOCHS}ep",
            save_folder=None if checkpoint else str(directory),
            save_filename="ba{batch}",
            save_interval=f"{SAVED_STEP}ba",
            load_path=checkpoint and str(checkpoint),
            device="cpu",
            device_train_microbatch_size=SETTINGS["batch_size"],
            progress_bar=False,
        )
        trainer.fit()
        trainer.close()
        return model.model.batches

    return {
        "whole": train(),
        "resumed": train(directory / f"ba{SAVED_STEP}"),
        "moved": move_batch(path, DeviceCPU().batch_to_device),
    }


def mesh(path, directory):
    ds = npstream.open(path)
    dist.init_process_group("gloo")
    whole = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    part = whole["data"]
    explicit_ranks = ds.iter(part.get_local_rank(), part.size(), **SETTINGS)
    detected_ranks = ds.iter(replication=2, **SETTINGS)
    return {
        "at": whole.get_coordinate(),
        "given": [batch.ids.tolist() for batch in explicit_ranks],
        "detected": [batch.ids.tolist() for batch in detected_ranks],
    }


if __name__ == "__main__":
    name, path, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = globals()[name](path, directory)
    rank = dist.get_rank() if dist.is_initialized() else 0
    (directory / f"{name}-{rank}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # some frameworks leave threads that wait for a network
