"""A local Spark with two Python workers."""

from __future__ import annotations

import os
import shutil
import warnings

import pytest


# An example in docs/ stops the session of its process, so each module has a session of its own.
@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Return a session of a local Spark, which repeats failed tasks."""
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("java is not installed")
    folder = tmp_path_factory.mktemp("spark")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Spark, about the newest pandas
        session = (
            sql.SparkSession.builder.master("local[2,4]")  # 2 threads; 4 attempts of a task
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.local.dir", str(folder / "local"))
            .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
            .getOrCreate()
        )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
