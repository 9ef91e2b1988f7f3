"""One column of the matrix: `pytest --backend=NAME --device=NAME`.

The backend and the device are proven before the first test. A column that was
asked for and isn't there is an error, never a skip. On Keras's NumPy backend only the
cases of the matrix run.
"""

import gc
import importlib
import itertools
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

BACKENDS = ("tensorflow", "jax", "torch")
DEVICES = ("cpu", "gpu")
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
LEFT = pytest.StashKey[int]()  # how many tests are left to `nox -t full`


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=(*BACKENDS, "numpy"),
        default=os.environ.get("KERAS_BACKEND", "jax"),
        help="Keras backend to test (default: KERAS_BACKEND, or jax)",
    )
    parser.addoption(
        "--device", choices=DEVICES, default="cpu", help="device to test on"
    )
    parser.addoption(
        "--full", action="store_true", help="also run the tests that are marked full"
    )


def pytest_configure(config):
    backend, device = config.getoption("--backend"), config.getoption("--device")
    if "keras" in sys.modules:
        raise pytest.UsageError(
            "Keras was imported before its backend could be chosen. "
            f"Received: --backend={backend}. Don't load plugins that import it."
        )
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["JAX_PLATFORMS"] = "cpu"
    if device == "cpu" and "PYTEST_XDIST_WORKER" in os.environ:
        # Workers have a core each: more threads would wait for one another.
        os.environ.update(dict.fromkeys(THREADS, "1"))
    if device == "cpu" and getattr(config, "cache", None):
        # What one of the workers and their processes has compiled serves all of them,
        # and later runs; most of it is small and takes JAX most of the time.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Two CPU devices out of one, so that replicas can be tested anywhere.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    try:
        found = _devices(backend)
    except ImportError as error:
        raise pytest.UsageError(
            f"The backend can't be imported ({error}). Received: "
            f"--backend={backend}. Install keras-bnx[{backend}]."
        ) from error
    if device not in found:
        raise pytest.UsageError(
            f"The backend finds no such device. Received: --device={device} with "
            f"--backend={backend}, which finds {sorted(found)}. Run this column "
            "where there is one."
        )
    import keras

    if keras.config.backend() != backend:
        raise pytest.UsageError(
            f"Keras runs on {keras.config.backend()}. Received: --backend={backend}."
        )


def _devices(backend):
    framework = importlib.import_module(backend)
    if backend == "tensorflow":
        devices = framework.config.list_physical_devices()
        if not framework.config.list_physical_devices("GPU"):
            framework.config.set_logical_device_configuration(
                devices[0], [framework.config.LogicalDeviceConfiguration()] * 2
            )
        return {device.device_type.lower() for device in devices}
    if backend == "jax":
        return {device.platform for device in framework.devices()}
    if backend == "numpy":
        return {"cpu"}
    return {"gpu"} if framework.cuda.is_available() else {"cpu"}


def pytest_report_header(config):
    import keras

    backend = config.getoption("--backend")
    version = importlib.import_module(backend).__version__
    device = config.getoption("--device")
    return f"column: {backend} {version} on {device}, keras {keras.__version__}"


def pytest_ignore_collect(collection_path, config):
    """Leaves out the tests of the other backends' own modules."""
    name = collection_path.stem.removeprefix("test_").partition("_")[0]
    return True if name in BACKENDS and name != config.getoption("--backend") else None


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked `full` out, and counts them."""
    if config.option.full:
        return
    chosen, left = [], []
    for item in items:
        mark = item.get_closest_marker("full")
        here = mark is None or mark.kwargs.get("except_on") == config.option.backend
        (chosen if here else left).append(item)
    items[:] = chosen
    config.stash[LEFT] = len(left)
    config.hook.pytest_deselected(items=left)


def pytest_collection_finish():
    """Spares garbage collections the frameworks, a million objects."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Takes a worker's count, which all workers have alike."""
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter, config):
    if left := config.stash.get(LEFT, 0):
        terminalreporter.section("left out")
        terminalreporter.line(
            f"{left} tests that are long or rare: `python -m nox -t full`, or --full"
        )


@pytest.fixture(autouse=True)
def _seed():
    import keras

    keras.utils.set_random_seed(0)
    yield
    # Without its garbage collection, which took 0.3 s after every test.
    keras.utils.clear_session(free_memory=False)


TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _free_memory():
    """Frees memory after every 40th test."""
    yield
    if next(TESTS) % 40:
        return
    if "jax" in sys.modules:
        # A megabyte for each function that was compiled: workers grew to 4 GiB.
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture
def float64():
    """Lets JAX compute in float64, which the others always do."""
    from frameworks import float64_enabled

    with float64_enabled():
        yield
