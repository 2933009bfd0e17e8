"""Models that several folders of tests use, and the seeds of tests that draw their inputs.

Python's, NumPy's and torch's own generators are seeded before each fixture and each test, from
the run's seed and the name of what is about to run. A test that draws takes its numbers from them,
so that ``pytest --seed S NAME`` draws the same again, whatever ran before. Tests that drew are
remembered: ``--drawn`` runs only those.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test
from interpreter_speed import patch_language_once_a_launch, remember_types

# Kernels of this process run in Triton's interpreter, which is chosen when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
# Read when torch is first imported: threads that wait sleep instead of spinning, or the tests of
# tiny models crawl on a machine whose cores are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Hundreds of processes start, each of which would compile the package again. Too late for this
# file, in time for what is imported and started from here on.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell ignores ctrl-C for what it runs in the background, and programs under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Until all is collected: that makes millions of objects which stay.
gc.disable()

FIXTURES = Path(__file__).parent / "fixtures"
REMEMBERED = "halfbyte/drawn"


class Generators:
    """The generators that tests draw from. torch's only where a test has imported torch."""

    def sow(self, *names: object) -> None:
        number = int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "big")
        random.seed(number)
        for name, module in self._modules():
            seed = _torch_seed(module) if name == "torch" else module.random.seed
            seed(number)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"random": random.getstate()}
        for name, module in self._modules():
            state[name] = module.get_rng_state() if name == "torch" else module.random.get_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        random.setstate(state["random"])
        for name, module in self._modules():
            if name in state:
                restore = module.set_rng_state if name == "torch" else module.random.set_state
                restore(state[name])

    def moved_from(self, state: dict[str, Any]) -> bool:
        now = self.state()
        # A module that was imported meanwhile has no state from before.
        return any(_plain(state[name]) != _plain(now[name]) for name in state.keys() & now.keys())

    def _modules(self) -> list[tuple[str, Any]]:
        # None stands in sys.modules for what a test forbids to import.
        modules = [(name, sys.modules.get(name)) for name in ("numpy", "torch")]
        return [(name, module) for name, module in modules if module is not None]


@functools.cache
def _torch_seed(torch: Any) -> Callable[[int], object]:
    """What seeds torch: without a device its own generator alone, a hundred times as fast.

    ``torch.manual_seed`` notes the stack of each call, for the day when CUDA starts.
    """
    generator = torch if torch.accelerator.is_available() else torch.default_generator
    return generator.manual_seed


def _plain(state: Any) -> object:
    """A state of a generator in values that compare: the arrays as bytes."""
    parts = state if isinstance(state, tuple) else (state,)
    arrays = [part.numpy() if hasattr(part, "numpy") else part for part in parts]
    return [part.tobytes() if hasattr(part, "tobytes") else part for part in arrays]


class Draws:
    """Seeds fixtures and tests, notes which of them drew, and names the seed of a failure."""

    def __init__(self, config: pytest.Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.generators = Generators()
        self.fixtures: set[str] = set()
        self.ran: dict[str, bool] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.func.__module__.startswith("_pytest."):
            return (yield)  # its own, parameters above all: many, and none of them draws
        outer = self.generators.state()
        self.generators.sow(self.seed, request.node.nodeid, fixturedef.argname)
        before = self.generators.state()
        try:
            return (yield)
        finally:
            if self.generators.moved_from(before):
                self.fixtures.add(fixturedef.argname)
            self.generators.restore(outer)  # a test that asks for a fixture midway draws on

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, object, object]:
        self.generators.sow(self.seed, item.nodeid)
        before = self.generators.state()
        try:
            return (yield)
        finally:
            if (
                self.generators.moved_from(before)
                or not self.fixtures.isdisjoint(item.fixturenames)
                or is_hypothesis_test(item.obj)
            ):
                item.user_properties.append(("drawn", True))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            report.sections.append(("seed", f"pytest --seed {self.seed} {item.nodeid!r}"))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.ran[report.nodeid] = ("drawn", True) in report.user_properties

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self.config.getoption("--drawn"):
            return
        drawn = self._remembered()
        if not drawn:
            raise pytest.UsageError("--drawn: no test is known to draw; run them all once before")
        left = [item for item in items if item.nodeid not in drawn]
        items[:] = [item for item in items if item.nodeid in drawn]
        self.config.hook.pytest_deselected(items=left)

    def pytest_sessionfinish(self) -> None:
        if self._cache is not None and not hasattr(self.config, "workerinput"):
            drew = {name for name, drawn in self.ran.items() if drawn}
            names = sorted(self._remembered() - self.ran.keys() | drew)
            self._cache.set(REMEMBERED, names)

    def _remembered(self) -> set[str]:
        return set() if self._cache is None else set(self._cache.get(REMEMBERED, []))

    @property
    def _cache(self) -> pytest.Cache | None:
        return getattr(self.config, "cache", None)  # there is none with -p no:cacheprovider

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Processes of pytest-xdist draw from the same seed."""
        node.workerinput["seed"] = self.seed


def pytest_collection_finish() -> None:
    """Nothing of what collecting made will go: the collector need not walk it again and again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or the end of the process counts it as leaked
    gc.enable()  # where nothing was collected


def pytest_runtest_setup() -> None:
    if "triton.runtime.interpreter" in sys.modules:
        patch_language_once_a_launch()
        remember_types()
    # The C kernels' threads, as torch's above: those that wait take the cores from other processes
    # of the run. Tests of the pool itself spin as users' programs do.
    library: Any = sys.modules.get("halfbyte.kernels.cpu.library")
    if library is not None:
        library.SPIN_US = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="draw as the run with this seed drew")
    parser.addoption("--drawn", action="store_true", help="only tests that drew when last run")


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("seed", config.getoption("--seed"))
    seed = random.SystemRandom().getrandbits(32) if given is None else given
    config.pluginmanager.register(Draws(config, seed), "draws")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model; pulled once into the cache when it is not there."""
    from halfbyte.loaders.store.model_store import pull_model

    return pull_model("smollm2")


@pytest.fixture(scope="session")
def tiny_hf() -> Path:
    """A two-layer Llama as a folder: float16, vocabulary 600, context 512."""
    return FIXTURES / "fp16-llama-spm"


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """The same model as a GGUF file: Q4_0, embedding in Q8_0."""
    return FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf"


@pytest.fixture
def in_child() -> Callable[[Callable[[], str]], str]:
    """What a function gives, or the error that it raises, in a forked child; "" if it hangs."""

    def run(work: Callable[[], str]) -> str:
        come, go = os.pipe()
        child = os.fork()
        if not child:
            try:
                text = work()
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(go, text.encode())
            os._exit(0)
        os.close(go)
        with os.fdopen(come, "rb") as reader:
            # A child that hangs must not hang the tests.
            ready, _, _ = select.select([reader], [], [], 60)
            if not ready:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return reader.read().decode() if ready else ""

    return run
