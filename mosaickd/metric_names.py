"""What metrics are called: one name for one thing, in every method, in metrics.jsonl and on W&B.

`docs/metrics.md` has the same table for people.
"""

from __future__ import annotations

#: What each line of metrics.jsonl has beside its metrics.
STEP = "step"  # iterations of the run so far: the axis of every curve
TIME = "time"  # when it was logged, in seconds since 1970

TOP1 = "accuracy/top1"
TOP5 = "accuracy/top5"
BEST = "accuracy/best"
BEST_STEP = "accuracy/best_step"
TEACHER = "accuracy/teacher"
PER_CLASS = "accuracy/per_class"
SECONDS_PER_STEP = "speed/seconds_per_step"
IMAGES_PER_SECOND = "speed/images_per_second"
PEAK_MEMORY = "memory/peak_mb"
SAMPLES = "samples/grid"
FAKE_CLASSES = "fakes/classes"
FAKE_CLASSES_SEEN = "fakes/classes_seen"
FAKE_CONFIDENCE = "fakes/confidence"
LOSS, WEIGHTED, LEARNING_RATE = "loss", "weighted", "lr"


def loss(player_and_name: str) -> str:
    """generator/local -> loss/generator/local"""
    return f"{LOSS}/{player_and_name}"


def weighted(player_and_name: str) -> str:
    """generator/local -> weighted/generator/local"""
    return f"{WEIGHTED}/{player_and_name}"


def learning_rate(player: str) -> str:
    """student -> lr/student"""
    return f"{LEARNING_RATE}/{player}"


#: Every metric there is: its name, its unit, and what it is. PLAYER and NAME stand for those of the
#: method's turns.
METRICS: dict[str, tuple[str, str]] = {
    "loss/PLAYER/NAME": ("", "a loss as it is, mean over the iterations since the last line"),
    "weighted/PLAYER/NAME": ("", "the same times its weight: what is minimised is their sum"),
    "lr/PLAYER": ("", "the learning rate of the player's optimizer"),
    TOP1: ("%", "the student's accuracy on the test images"),
    TOP5: ("%", "how often the right class is among its five likeliest"),
    BEST: ("%", "the highest accuracy/top1 so far"),
    BEST_STEP: ("steps", "of a run's summary: the step at which accuracy/best was measured"),
    TEACHER: ("%", "of a run's summary: the teacher's accuracy on the same images"),
    PER_CLASS: ("%", "at the end: the accuracy by class, a table"),
    SAMPLES: ("", "synthetic images beside those it trains on, a picture"),
    FAKE_CLASSES: ("images", "how many synthetic images the teacher takes for each class"),
    FAKE_CLASSES_SEEN: ("classes", "how many classes it takes any of them for"),
    FAKE_CONFIDENCE: ("0 to 1", "the mean probability that it gives their likeliest class"),
    SECONDS_PER_STEP: ("s", "of an iteration, without evaluations"),
    IMAGES_PER_SECOND: ("images/s", "batch size over the seconds of an iteration"),
    PEAK_MEMORY: ("MB", "the most that tensors (CUDA) or the process (CPU) ever held"),
}
