"""One run, from its config to its result.json, told from top to bottom."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mosaickd import teachers, tracking
from mosaickd.components import (
    Components,
    build,
    build_components,
    build_players,
    check_players,
    derived_seed,
)
from mosaickd.config.run_key import config_hash, run_key, variant
from mosaickd.config.schema import required_inputs, training_source
from mosaickd.config.validation import validate
from mosaickd.data.decode import format_broken
from mosaickd.engine import distributed
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.checkpoint import TorchRNG
from mosaickd.engine.device import Compute, describe_device, out_of_memory, peak_memory_mb, set_up
from mosaickd.engine.graph import CapturedStep
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import TrainingLoop, TrainState
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleLogger, sample_counts
from mosaickd.engine.settings import TrainSettings
from mosaickd.engine.trackers import NoTracker, Tracker
from mosaickd.engine.trainer import Trainer
from mosaickd.errors import UserError
from mosaickd.load_data import (
    RunData,
    build_loaders,
    build_test_batches,
    count_train_images,
    epoch_steps,
    load_data,
    predictor,
    select_ood_subset,
)
from mosaickd.methods.base import Latents, Method
from mosaickd.models.weights import save_weights, weights_digest
from mosaickd.run_dir import OpenedRun, Result, RunDir, open_run_dir, withdraw
from mosaickd.utils.files import write_text
from mosaickd.utils.git_info import code_version
from mosaickd.utils.locks import Lost, check_run_lock, run_lock

log = logging.getLogger(__name__)


def launch(
    cfg: DictConfig, folder: Path, interruption: Interruption, group: str | None = None
) -> Result:
    """Begin the run of `cfg` in `folder`, resume it, or return the result of a finished one.

    group: what the run is one of (a sweep, the training of teachers). Under torchrun every rank
    calls this alike. Raises UserError, Interrupted, and what a user's own code raises.
    """
    if group != tracking.TEACHERS:  # whose config comes of one that was checked
        distributed.rank0_only(lambda: check(cfg, folder))
    run, key, files = RunDir(folder), run_key(cfg), hydra_files(cfg)
    with distributed.rank0_holds(partial(run_lock, folder)):
        opened = distributed.rank0_only(
            lambda: open_run_dir(run, key, files, force=cfg.force, inputs=input_paths(cfg))
        )
        if opened.previous is not None and opened.finished:
            return report_finished(cfg, run, opened.previous, group)
        result = new_result(cfg, opened)

        with recorded(opened, result, force=cfg.force), explain_failures(cfg, folder, result):
            check_players(cfg)
            settings = OmegaConf.to_object(cfg.train)
            assert isinstance(settings, TrainSettings)
            compute = set_up(cfg.device, settings)
            result.device = f"{describe_device(compute.device)}, {compute.precision}"

            # ---- images
            data = load_data(cfg)
            result.data_fingerprint = data.fingerprints
            an_epoch = epoch_steps(cfg, data)
            steps, cut_short = run_length(cfg, an_epoch)

            # ---- networks, the method, its players
            components = build_components(
                cfg,
                device=compute.device,
                num_classes=len(data.test.classes),
                instances=count_train_images(cfg, data) if data.train_source == "ood" else 0,
                steps=steps,
            )
            method = components.method
            distributed.rank0_only(lambda: check_method(cfg, method, steps))
            trainer = Trainer(method, build_players(cfg, method, steps), compute.autocast)
            distributed.broadcast(
                *(tensor for m in method.players.values() for tensor in m.state_dict().values())
            )

            # ---- the teacher: trained first where it is missing, by a call of this function
            test_batches = build_test_batches(cfg, data, compute.device)
            predict = None
            if components.teacher is not None:
                file = teachers.get_or_train(
                    cfg, run, launch, interruption,
                    cut_short=steps if cut_short else None, discard=opened.overwrites,
                )  # fmt: skip
                result.teacher_accuracy = teachers.load_and_measure(
                    cfg, components.teacher, file, data, test_batches, compute
                )
                result.teacher_fingerprint = weights_digest(components.teacher)[:16]
                predict = predictor(
                    cfg, data, components.teacher,
                    device=compute.device, autocast=compute.autocast,
                )  # fmt: skip
                if cfg.ood_subset and data.train_source == "ood":
                    data = select_ood_subset(cfg, data, components.teacher, predict)

            # ---- training
            loaders = build_loaders(cfg, data, method.streams, compute.device, predict)
            sampler = BatchSampler(method.streams, loaders)
            title = tracking.run_heading(result, group)
            log.info("%s: %d steps of %d images, on %s", title, steps, cfg.train.batch_size,
                     result.device)  # fmt: skip
            sample_logger = build_sample_logger(cfg, components, data, compute)
            result.total_steps = steps
            tracker = begin(cfg, opened, result, data, group)
            every = cfg.train.eval_every or an_epoch or steps
            loop = TrainingLoop(
                trainer=trainer,
                sampler=sampler,
                iterate=(
                    CapturedStep(trainer, sampler, components.generators)
                    if cfg.train.cuda_graph
                    else partial(trainer.next_step, sampler)
                ),
                student=components.student,
                test_batches=test_batches,
                classes=data.test.classes,
                run=run,
                settings=settings,
                steps=steps,
                eval_every=every,
                tracker=tracker,
                progress=Progress(title, steps, every),
                interruption=interruption,
                sample_logger=sample_logger,
                shared_rng=components.shared_rng,
                per_rank_rng={**components.per_rank_rng, "torch": TorchRNG()},
                provenance=result.provenance,
            )
            train(cfg, run, loop, result, compute.device)
    return result


# ------------------------------------------------------------------------- before the run begins


def check(cfg: DictConfig, folder: Path) -> None:
    """Raise UserError for what can't be meant, or can't be computed by so many ranks."""
    validate(cfg)
    if HydraConfig.initialized() and HydraConfig.get().job.chdir:
        raise UserError(
            "hydra.job.chdir=true would have relative paths (teachers_dir, the images' roots) "
            "begin in the run's folder: leave it out"
        )
    distributed.rank_slice(cfg.train.batch_size)
    if (folder / "checkpoints").resolve() == Path(cfg.teachers_dir).resolve():
        raise UserError(
            f"the run's own checkpoints would lie among the teachers in {cfg.teachers_dir}: "
            "choose another hydra.run.dir=FOLDER or teachers_dir=FOLDER"
        )


def check_method(cfg: DictConfig, method: Method, steps: int) -> None:
    """Raise UserError for a way of computing that the method has not; warn of idle players."""
    if cfg.train.cuda_graph and not method.graph_capturable:
        raise UserError(
            "train.cuda_graph=true captures one iteration for all, and those of method="
            f"{cfg.method.name} are not all alike: leave it out"
        )
    if distributed.world_size() > 1 and not method.supports_ddp:
        raise UserError(
            f"method={cfg.method.name} can't be run by several processes: run it without torchrun "
            "(the jobs of a sweep can share several devices)"
        )
    for player in method.players:
        if method.iterations(player, steps) == 0:
            log.warning("a run of %d steps is too short for method=%s: the %s never has a turn",
                        steps, cfg.method.name, player)  # fmt: skip


def run_length(cfg: DictConfig, an_epoch: int | None) -> tuple[int, bool]:
    """Return the run's steps, and whether its recipe has more."""
    recipe = cfg.train.epochs * an_epoch if cfg.train.epochs and an_epoch else None
    steps = cfg.train.steps or recipe
    if steps is None:
        raise UserError(
            f"method={cfg.method.name} trains on no images, so train.epochs says nothing without "
            "train.epoch_steps: set it, or train.steps"
        )
    return steps, recipe is not None and steps < recipe


def hydra_files(cfg: DictConfig) -> dict[str, str]:
    """Return what Hydra would write into `.hydra/` by itself: we do once the run is accepted."""
    files = {"config.yaml": OmegaConf.to_yaml(cfg)}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        files["overrides.yaml"] = OmegaConf.to_yaml(hydra.overrides.task)
        files["hydra.yaml"] = OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra}))
    return files


def input_paths(cfg: DictConfig) -> dict[str, str | None]:
    """Return the files and folders that the run reads, by their settings."""
    names = ("teacher.checkpoint", "dataset.root", "ood.root")
    paths = {name: OmegaConf.select(cfg, name) for name in names}
    return {name: path for name, path in paths.items() if isinstance(path, str)}


# ------------------------------------------------------------------------------------ the result


def new_result(cfg: DictConfig, opened: OpenedRun) -> Result:
    """Return the result of a run that begins; what an earlier session came to stays true."""
    result = opened.previous or Result("", "", "", "", 0)
    inputs, ood = required_inputs(cfg), training_source(cfg) == "ood"
    result.status = "preparing"
    result.method = cfg.method.name
    result.dataset = cfg.dataset.name
    result.ood = cfg.ood.name if ood else None
    result.ood_subset = bool(ood and cfg.ood_subset)
    result.teacher = cfg.teacher.name if "teacher" in inputs else None
    result.student = cfg.student.name
    result.seed = cfg.seed
    result.variant = variant(cfg)
    result.processes = distributed.world_size()
    result.versions = package_versions()
    result.config_hash = config_hash(opened.key)
    result.code = code_version()
    result.device = result.memory_mb = result.error = None
    return result


@contextmanager
def recorded(opened: OpenedRun, result: Result, *, force: bool) -> Iterator[None]:
    """Keep result.json up to date, however the block ends.

    A run that fails before its first step, and has no earlier session, leaves no run behind; where
    it was to overwrite another one, that one stays untouched.
    """
    run, writes = opened.run, distributed.is_rank0()
    if writes and not opened.overwrites:  # for those who look from outside
        run.write_result(result)
    begun = False
    try:
        yield
        result.status = "finished"
    except Interrupted as stop:
        begun = result.status == "running"
        result.status, result.error = "interrupted", str(stop)
        if opened.overwrites and not begun:
            log.info("%s before it began: nothing was overwritten", stop)
        else:
            same = "the same command, without force=true," if force else "the same command"
            log.info("%s at step %d; %s goes on from there", stop, result.steps, same)
        raise
    except Exception as error:
        begun = result.status == "running"
        result.status, result.error = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        lost = isinstance(sys.exception(), Lost)
        untouched = opened.overwrites and not begun and result.status != "finished"
        if writes and not lost and not untouched:
            if result.status == "failed" and not begun and opened.previous is None:
                withdraw(run)
            else:
                write_result(run, result)


def write_result(run: RunDir, result: Result) -> None:
    """Write result.json; where that fails after another error, that one is the one to report."""
    failing = sys.exception() is not None
    try:
        run.write_result(result)
    except OSError as error:
        if not failing:
            raise
        log.error("%s could not be written: %s", run.result, error.strerror or error)


@contextmanager
def explain_failures(cfg: DictConfig, folder: Path, result: Result) -> Iterator[None]:
    """Turn what the machine lacks (memory, room on the disk) into a UserError: what to do."""
    try:
        yield
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"{error.strerror or error}{place} at step {result.steps}. What was written before is "
            "whole, and the same command goes on from there when that is mended; "
            f"hydra.run.dir=FOLDER chooses another place than {folder}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        size = cfg.dataset.image_size
        raise UserError(
            f"out of memory at step {result.steps}, with train.batch_size={cfg.train.batch_size} "
            f"and images of {size}x{size} on {result.device or cfg.device} ({reason}). Lower "
            "train.batch_size (train.eval_batch_size, if it came while testing), image_size or "
            "the size of the networks; train.precision=bf16 halves what a batch takes"
        ) from error


def report_finished(cfg: DictConfig, run: RunDir, result: Result, group: str | None) -> Result:
    """Return the result of a run that has nothing left to do, marked as skipped."""
    in_sweep = group is not None
    log.info("%s is finished: nothing to do (force=true runs it anew)", run.path,
             extra={"console": not in_sweep})  # fmt: skip
    if distributed.is_rank0():
        tracking.report_finished(cfg, run.path, result, group)
    result.skipped = True
    return result


# -------------------------------------------------------------------------------------- training


def begin(
    cfg: DictConfig, opened: OpenedRun, result: Result, data: RunData, group: str | None
) -> Tracker:
    """Begin in the run's folder, list broken images there; return the run's tracker."""
    run, broken = opened.run, data.broken
    result.status = "running"
    result.broken_images = {split: len(places) for split, places in broken.items()}
    tracked = tracking.tracked_run(cfg, run.path, result, group)
    if not distributed.is_rank0():
        return NoTracker(run=tracked)
    check_run_lock(run.path)  # to prepare may have taken long
    opened.begin(result)
    if broken:
        write_text(run.broken, format_broken(broken))
    else:
        run.broken.unlink(missing_ok=True)
    tracker: Tracker = build(cfg.tracker, run=tracked)
    return tracker


def build_sample_logger(
    cfg: DictConfig, components: Components, data: RunData, compute: Compute
) -> SampleLogger:
    """Return what draws samples of fixed noise and fixed images, so that steps can be compared."""
    shown, counted = sample_counts(cfg.dataset.image_size, len(data.test.classes))
    noise: list[torch.Tensor | None] = [None]
    if components.latents is not None:
        latents = Latents(components.latents.dim, compute.device, derived_seed(cfg.seed, "samples"))
        noise = [latents(shown) for _ in range(max(1, counted // shown))]
    images = None
    if data.train is not None:
        sample = data.train.images[:: max(1, len(data.train) // shown)][:shown]
        images = components.normalize(sample.to(compute.device).float() / 255)
    return SampleLogger(
        components.method,
        teacher=components.teacher,
        denormalize=components.normalize.inverse,
        noise=noise,
        images=images,
        autocast=compute.autocast,
    )


def train(
    cfg: DictConfig, run: RunDir, loop: TrainingLoop, result: Result, device: torch.device
) -> None:
    """Train to the end and write the student, or stop; either way the result says how far."""
    torch.manual_seed(derived_seed(cfg.seed, "training") + distributed.rank())  # a user's dropout
    status = "failed"
    try:
        with loop.progress:
            loop.fit()
        if distributed.is_rank0():
            check_run_lock(run.path)
            metadata = {"model": cfg.student.name, "accuracy": loop.state.accuracy["last"]}
            save_weights(loop.student, run.student, metadata)
            loop.tracker.file(loop.state.step, "model", run.student)
            tracking.log_per_class(loop.tracker, run.path)
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        record_state(result, loop.state, device)
        loop.tracker.finish(status, tracking.summary(result))


def record_state(result: Result, state: TrainState, device: torch.device) -> None:
    """Write down how far the training got, what it reached and what it took."""
    result.accuracy = state.accuracy
    result.steps = state.step
    result.seconds = round(state.seconds, 3)
    result.seconds_per_step = round(state.seconds / state.step, 5) if state.step else None
    result.memory_mb = round(peak_memory_mb(device))


def package_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("mosaickd", "torch", "torchvision", "hydra-core"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
