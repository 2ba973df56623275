"""Supervised fine-tuning: resumes bit for bit, compiles once a bucket, and its loss is the one that is written down."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import losses, policy
from pixelis_jax.data import pipeline
from pixelis_jax.data.records import RecordSource, write_records
from pixelis_jax.training import loop, sft
from pixelis_jax.workdir import Workdir, WorkdirError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory):
    """Runs of this file meet the same shapes: compiled once, also in the processes that are killed."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,  # compiling is most of the time that this file takes
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.array_record"
    write_records(path, micro.make_examples(24))
    return path


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """The run that all others must equal: its parameters, how it ended, its directory."""
    path = tmp_path_factory.mktemp("whole") / "run"
    model, result = sft.train(micro.make_config(data), path, micro.make_model())
    return nnx.to_pure_dict(nnx.state(model)), result, path


def _same(left, right) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right))


def _params(model: nnx.Module):
    return nnx.to_pure_dict(nnx.state(model))


def test_a_run_learns_logs_and_compiles_once_a_bucket(uninterrupted, data: Path) -> None:
    params, result, path = uninterrupted
    config = micro.make_config(data)
    assert result.finished and int(result.state.step) == config.total_steps
    buckets = {name: config.buckets[name] for name in ("tokens", "frames", "tokens_per_batch")}
    sizes = RecordSource(data).sizes
    plan = pipeline.BatchPlan(sizes, **buckets, rows_multiple=1, seed=3, batches=config.total_steps)
    assert result.compilations == len({plan[i][0] for i in range(config.total_steps)})
    rows = Workdir(path).metrics()
    assert [row["step"] for row in rows] == list(range(20, config.total_steps + 1, 20))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[0].keys() >= {"imitation", "nll/operation", "heads/box", "gradient_norm", "learning_rate"}
    assert not _same(params, _params(micro.make_model()))


def test_kill_9_and_the_same_command_give_the_same_bits(
    uninterrupted, data: Path, tmp_path: Path, compilation_cache: dict[str, str]
) -> None:
    command = [sys.executable, str(Path(micro.__file__)), str(data), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | compilation_cache
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "50").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    config = micro.make_config(data)
    saved = Workdir(tmp_path / "run").open_checkpoints().latest()
    assert saved is not None and 50 <= saved < config.total_steps

    model, result = sft.train(config, tmp_path / "run", micro.make_model())
    params, whole, path = uninterrupted
    assert result.finished and _same(_params(model), params)
    assert _same(result.state.items(), whole.state.items())
    rows, expected = Workdir(tmp_path / "run").metrics(), Workdir(path).metrics()
    steps = [row["step"] for row in rows]
    assert sorted(set(steps)) == steps and steps[-1] == config.total_steps
    assert rows[-1]["loss"] == expected[-1]["loss"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, uninterrupted, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = loop.place_batch
    calls = []

    def place_and_terminate(batch, mesh):
        calls.append(batch)
        if len(calls) == 7:
            os.kill(os.getpid(), number)
        return place(batch, mesh)

    monkeypatch.setattr(loop, "place_batch", place_and_terminate)
    before = signal.getsignal(number)
    _, result = sft.train(micro.make_config(data), tmp_path / "run", micro.make_model())
    assert not result.finished and int(result.state.step) == 7
    assert signal.getsignal(number) is before
    assert Workdir(tmp_path / "run").open_checkpoints().latest() == 7
    model, result = sft.train(micro.make_config(data), tmp_path / "run", micro.make_model(seed=9))
    assert result.finished and _same(_params(model), uninterrupted[0])


def test_a_time_limit_ends_a_run_cleanly(data: Path, tmp_path: Path) -> None:
    _, result = sft.train(micro.make_config(data, max_minutes=0.0), tmp_path / "run", micro.make_model())
    assert not result.finished and int(result.state.step) == 1
    assert Workdir(tmp_path / "run").open_checkpoints().latest() == 1


def test_a_finished_run_is_left_as_it_is(uninterrupted, data: Path) -> None:
    params, _, path = uninterrupted
    rows = Workdir(path).metrics()
    model, result = sft.train(micro.make_config(data), path, micro.make_model())
    assert result.finished and result.compilations == 0
    assert _same(_params(model), params) and Workdir(path).metrics() == rows


def test_another_config_is_refused(uninterrupted, data: Path) -> None:
    _, _, path = uninterrupted
    with pytest.raises(WorkdirError, match=r"made by another config: seed \(3 -> 4\)"):
        sft.train(micro.make_config(data, seed=4), path, micro.make_model())


def test_a_loss_that_is_not_finite_is_never_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = loop.place_batch
    monkeypatch.setattr(
        loop, "place_batch", lambda batch, mesh: place(dataclasses.replace(batch, weights=batch.weights * np.nan), mesh)
    )
    with pytest.raises(FloatingPointError, match="step 50 has loss nan"):
        sft.train(micro.make_config(data), tmp_path / "run", micro.make_model())
    assert Workdir(tmp_path / "run").open_checkpoints().latest() is None


def test_the_callers_model_survives(data: Path, tmp_path: Path) -> None:
    model = micro.make_model()
    sft.train(micro.make_config(data, max_minutes=0.0), tmp_path / "run", model)
    assert _same(_params(model), _params(micro.make_model()))


def test_the_loss_is_that_of_the_naive_form() -> None:
    """Row by row without padding, whole logits, against the batched, bucketed and chunked loss."""
    rng = np.random.default_rng(5)
    examples = [micro.make_example(rng, tokens=14, grids=((4, 2), (2, 4))), micro.make_example(rng, tokens=20)]
    bucket = pipeline.Bucket(rows=2, tokens=32, frames=2, patches=16, calls=3, weighted=16)
    batch = pipeline.make_batch(examples, bucket, micro.PATCH)
    model = micro.make_model()
    heads = policy.AuxiliaryHeads(32, rngs=nnx.Rngs(1))
    graph, params = nnx.split(model)
    heads_graph, head_params = nnx.split(heads)
    config = micro.make_config("unused")
    banned = np.isin(np.arange(micro.VOCAB), (micro.VOCAB - 1, micro.VOCAB - 2))
    loss = sft.make_loss(graph, heads_graph, config, banned)
    value, metrics = jax.jit(loss)(nnx.to_pure_dict(params), nnx.to_pure_dict(head_params), batch, jax.random.key(0))

    encode = nnx.jit(lambda model, batch: sft.encode(model, batch, config.pixels))
    nll, weight, by_head = 0.0, 0.0, {"box": [], "point": [], "span": [], "operation": []}
    for example in examples:
        tokens, frames = len(example["ids"]), len(example["grid"])
        alone = pipeline.Bucket(rows=1, tokens=tokens, frames=frames, patches=16, calls=3, weighted=tokens)
        hidden, _ = encode(model, pipeline.make_batch([example], alone, micro.PATCH))
        logits = jnp.where(banned, -1e30, model.unembed(hidden[0, :-1]))
        log_probs = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), example["ids"][1:]]
        nll -= float(jnp.sum(log_probs * example["weights"][1:]))
        weight += float(example["weights"][1:].sum())
        predicted = heads(hidden[0, example["op_position"]])
        for k in range(len(example["op_id"])):
            by_head["operation"].append(losses.operation_loss(predicted.operation[k], jnp.asarray(example["op_id"][k])))
            for name, function in (("box", losses.box_loss), ("point", losses.point_loss), ("span", losses.span_loss)):
                if example[f"{name}_valid"][k]:
                    by_head[name].append(function(getattr(predicted, name)[k], jnp.asarray(example[name][k])))
    grounding = np.mean([np.mean(values) for values in by_head.values() if values])
    np.testing.assert_allclose(value, nll / weight + 0.5 * grounding, rtol=1e-5)
    np.testing.assert_allclose(metrics["imitation"].compute(), nll / weight, rtol=1e-5)


def test_the_patch_head_is_asked_what_each_patch_shows() -> None:
    """Two captions with other grids, against a loop over patches in the order in which the processor lays them out."""
    rng = np.random.default_rng(7)
    examples = [micro.make_example(rng, tokens=14, grids=((4, 2),)), micro.make_example(rng, tokens=20, grids=((4, 4),))]
    boxes = [[(0.0, 0.1, 0.6, 0.7)], [(0.1, 0.6, 0.9, 1.0), (0.6, 0.0, 1.0, 0.4)]]
    # One ink within a patch, one over two of them, one that only touches its neighbours.
    inks = [[((0.1, 0.3, 0.4, 0.45), 2)], [((0.25, 0.75, 0.75, 1.0), 0), ((0.7, 0.05, 0.9, 0.2), 5)]]
    examples = [
        {
            **example,
            "op_position": np.arange(3, 3 + len(named) + len(inked), dtype=np.int32),
            "op_id": np.asarray([-1] * len(named) + [-2 - kind for _, kind in inked], np.int32),
            "box": np.asarray([*named, *(box for box, _ in inked)], np.float32),
            "box_valid": np.arange(len(named) + len(inked)) < len(named),
            **{name: np.zeros((len(named) + len(inked), 2), np.float32) for name in ("point", "span")},
            **{f"{name}_valid": np.zeros(len(named) + len(inked), bool) for name in ("point", "span")},
        }
        for example, named, inked in zip(examples, boxes, inks, strict=True)
    ]
    bucket = pipeline.Bucket(rows=2, tokens=32, frames=1, patches=16, calls=5, weighted=16)
    batch = pipeline.make_batch(examples, bucket, micro.PATCH)
    config = micro.make_config("unused").loss
    heads = policy.AuxiliaryHeads(32, rngs=nnx.Rngs(1))
    visual = jnp.asarray(rng.normal(size=(2, 4, 32)), jnp.float32)
    value = sft.see(heads, visual, jax.tree.map(jnp.asarray, batch), config)

    there, predicted, kinds = heads.patches(visual)
    things, fits, stands, blank = [], [], [], []
    for row, (example, named, inked) in enumerate(zip(examples, boxes, inks, strict=True)):
        height, width = example["grid"][0]
        blocks = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
        patches = [(y + dy, x + dx) for y, x in blocks for dy in (0, 1) for dx in (0, 1)]
        for index, (y, x) in enumerate(patches):
            centre = ((x + 0.5) / width, (y + 0.5) / height)
            over = [box for box in named if box[0] < centre[0] < box[2] and box[1] < centre[1] < box[3]]
            share = 1 / (1 + np.exp(-float(there[row, index])))
            things.append(-np.log(share if over else 1 - share))
            if over:
                fits.append(float(losses.box_loss(predicted[row, index], jnp.asarray(over[0]))))
            log_probs = jax.nn.log_softmax(kinds[row, index])
            found = [kind for box, kind in inked if _shared(box, (x / width, y / height), (1 / width, 1 / height)) > 0.4]
            (stands if found else blank).append(-float(log_probs[found[0] + 1 if found else 0]))
    assert len(fits) > 4 and len(stands) == 4
    np.testing.assert_allclose(value, sum(np.mean(part) for part in (things, fits, stands, blank)), rtol=1e-5)


def _shared(box: tuple[float, ...], corner: tuple[float, float], side: tuple[float, float]) -> float:
    """Overlap of a box and a patch over the smaller of them."""
    edges = [(max(box[i], corner[i]), min(box[i + 2], corner[i] + side[i])) for i in (0, 1)]
    overlap = np.prod([max(high - low, 0.0) for low, high in edges])
    return float(overlap / min((box[2] - box[0]) * (box[3] - box[1]), side[0] * side[1]))


def test_logits_exist_only_by_the_chunk() -> None:
    """With a vocabulary size that nothing else has, arrays of that width are parameters and one chunk's logits."""
    rng = np.random.default_rng(5)
    bucket = pipeline.Bucket(rows=8, tokens=64, frames=1, patches=16, calls=2, weighted=32)
    batch = pipeline.make_batch([micro.make_example(rng, tokens=60) for _ in range(8)], bucket, micro.PATCH)
    graph, params = nnx.split(micro.make_model(vocab=71))
    heads_graph, head_params = nnx.split(policy.AuxiliaryHeads(32, rngs=nnx.Rngs(1)))
    loss = sft.make_loss(graph, heads_graph, micro.make_config("unused"), np.zeros(71, bool))
    arguments = nnx.to_pure_dict(params), nnx.to_pure_dict(head_params), batch, jax.random.key(0)
    text = str(jax.make_jaxpr(jax.grad(lambda *a: loss(*a)[0]))(*arguments))
    shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\]", text)}
    # A chunk of 16 positions of each of the 8 rows; whole logits would be (8, 32, 71).
    allowed = {(8, 16, 71), (71, 32), (32, 71), (1, 71, 32), (1, 71), (1, 1, 71), (1, 32, 71)}
    assert {shape for shape in shapes if 71 in shape and len(shape) > 1} <= allowed
