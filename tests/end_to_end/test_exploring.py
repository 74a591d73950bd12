"""Packages for data exploration accept views and columns."""

from __future__ import annotations

import numpy as np
import pytest

import npstream
from npstream.testing import assert_same

N = 50


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=N)
    return {
        "x": x,
        "y": 2 * x + 1,
        "group": np.arange(N) % 3,
        "features": rng.normal(size=(N, 4)).astype(np.float32),
        "picture": rng.integers(0, 255, (N, 8, 8), np.uint8),
    }


@pytest.fixture(scope="module")
def ds(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("exploring")
    npstream.write(path, values, shard_size=1 << 12)
    return npstream.open(path)


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_matplotlib_plots_columns(ds, values, plt):
    _, axes = plt.subplots()
    (line,) = axes.plot(ds["x"], ds["y"])
    assert_same(np.asarray(line.get_xydata()), np.column_stack([values["x"], values["y"]]))
    (line,) = axes.plot("x", "y", "", data=ds[::2])
    assert_same(np.asarray(line.get_xdata()), values["x"][::2].copy())
    points = axes.scatter(ds["x"], ds["y"], c=ds["group"])
    assert points.get_offsets().shape == (N, 2)
    assert_same(np.asarray(points.get_array()), values["group"].astype(float))
    counts, edges, _ = axes.hist(ds["x"], bins=5)
    want, bounds = np.histogram(values["x"], 5)
    assert_same(counts, want.astype(float))
    assert_same(edges, bounds)
    shown = axes.imshow(ds["picture"][..., 3, :, :])
    assert_same(np.asarray(shown.get_array()), values["picture"][3])
    axes.boxplot(ds["features"])
    axes.fill_between(ds["x"][:3], ds["y"][:3])
    axes.figure.canvas.draw()


def test_seaborn_plots_columns(ds, values, plt):
    seaborn = pytest.importorskip("seaborn")
    axes = seaborn.scatterplot(x=ds["x"], y=ds["y"], hue=ds["group"])
    assert_same(np.asarray(axes.collections[0].get_offsets())[:, 0], values["x"])
    plt.figure()
    axes = seaborn.histplot(ds["x"], bins=4)
    assert [patch.get_height() for patch in axes.patches] == np.histogram(values["x"], 4)[
        0
    ].tolist()
    plt.figure()
    seaborn.heatmap(ds["features"])
    seaborn.lineplot(x=ds["x"][::2], y=ds["y"][::2])


def test_scikit_learn_fits_columns(ds, values):
    pytest.importorskip("sklearn")
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    model = LinearRegression().fit(ds["features"], ds["y"])
    want = LinearRegression().fit(values["features"], values["y"])
    np.testing.assert_allclose(model.coef_, want.coef_)
    np.testing.assert_allclose(model.predict(ds["features"]), want.predict(values["features"]))
    assert model.score(ds["features"], ds["y"]) == pytest.approx(
        want.score(values["features"], values["y"])
    )
    scaled = StandardScaler().fit_transform(ds["features"][::2])
    np.testing.assert_allclose(
        scaled, StandardScaler().fit_transform(values["features"][::2]), atol=1e-6
    )
    assert KMeans(2, n_init=1, random_state=0).fit_predict(ds["features"]).shape == (N,)
    train, test = train_test_split(ds["x"], random_state=0)
    assert sorted([*train, *test]) == sorted(values["x"])


def test_pandas_accepts_columns(ds, values):
    pd = pytest.importorskip("pandas")
    assert_same(pd.Series(ds["x"]).to_numpy(), values["x"])
    frame = pd.DataFrame({"x": ds["x"], "group": ds["group"]})
    assert frame.groupby("group")["x"].mean().tolist() == pytest.approx(
        [values["x"][values["group"] == k].mean() for k in range(3)]
    )
    assert pd.crosstab(ds["group"], ds["group"]).to_numpy().trace() == N
    assert pd.cut(ds["x"], 3).value_counts().sum() == N
    assert_same(pd.Index(ds["group"]).to_numpy(), values["group"])
    frame["y"] = ds["y"]
    assert_same(frame["y"].to_numpy(), values["y"])
