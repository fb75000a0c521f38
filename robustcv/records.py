"""Frozen records of raw numbers, as they stand in report.json; versioned, with a JSON Schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT = 1  # 1: first format. Fields are added, never renamed or removed, within a format.

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "NO GATE", "INCOMPLETE"]
Status = Literal["pass", "raised", "not run"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", protected_namespaces=())


class Metric(_Frozen):
    """One number with its n and its interval; ``count`` for proportions, ``value`` for anything else."""

    name: str
    n: int
    count: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    method: str = "wilson"
    norm: str | None = None
    eps: float | None = None
    bound: Literal["upper", "lower"] | None = None
    attack: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Metric":
        if self.n < 1 or (self.count is not None and not 0 <= self.count <= self.n):
            raise ValueError(f"{self.name}: {self.count} of {self.n} is no proportion")
        if self.eps is not None and not 0 <= self.eps < float("inf"):
            raise ValueError(f"{self.name}: eps {self.eps} is no radius")
        return self


GRADIENT_FREE = ("square", "noise", "foolbox-boundary", "foolbox-hopskipjump")  # attacks that ask for answers alone


class AttackResult(_Frozen):
    """What one attack did at one eps: attempted and broken images, passes spent, largest distance measured."""

    name: str
    options: dict[str, Any]
    norm: str
    eps: float
    attempted: int
    broken: int
    forward: int
    backward: int
    seconds: float
    max_distance: float | None = None
    starts: int = Field(default=0, description="times an image was begun on: once each restart or class")
    at_start: int = Field(default=0, description="of the broken, by the first candidate, where the attack began")
    carried: int = Field(
        default=0, description="images of a larger eps whose change by this attack is small enough here: not attempted"
    )
    reason: Literal["plan", "probe", "escalation", "seed", "alone"] = "plan"


class SeedRun(_Frozen):
    """What the plan alone left standing at the headline eps with one seed of its random choices."""

    seed: int
    count: int
    n: int


class Agreement(_Frozen):
    """How many of the same images each two attacks break, each run alone; the diagonal is what each one breaks."""

    attacks: tuple[str, ...]
    norm: str
    eps: float
    n: int
    both: tuple[tuple[int, ...], ...]
    only: tuple[int, ...] = Field(description="broken by this attack and by no other")

    @model_validator(mode="after")
    def _square(self) -> "Agreement":
        k = len(self.attacks)
        if len(self.both) != k or len(self.only) != k or any(len(row) != k for row in self.both):
            raise ValueError(f"the table of {k} attacks is not square")
        return self


class ImagePasses(_Frozen):
    """What attacks spent on one image, of those that were attacked: the median, and the most.

    Each image's own counts are in evidence/verdicts.safetensors.
    """

    n: int
    median_forward: float
    median_backward: float
    most_forward: int
    most_backward: int


class Passes(_Frozen):
    """Forward and backward passes, counted per image."""

    forward: int = 0
    backward: int = 0
    per_image: ImagePasses | None = None


class Check(_Frozen):
    """One trust check: passed, raised or not run, with its figure, what to do, and the passes it cost."""

    check: str
    status: Status
    figure: str
    fix: str | None = None
    threshold: str | None = None
    source: str | None = None
    forward: int = 0
    backward: int = 0

    @classmethod
    def of(cls, name: str, fine: bool, figure: str, fix: str, **more: Any) -> "Check":
        """Make a check that was run: passed, or raised with what to do."""
        return cls(check=name, status="pass" if fine else "raised", figure=figure, fix=None if fine else fix, **more)


class Gate(_Frozen):
    """A threshold the user set, and whether the interval lies above it, below it, or across it.

    A floor is the least a metric may be; a drop the most it may fall from a baseline on the same images, and its value
    is the paired difference.
    """

    name: str
    threshold: float
    outcome: Literal["passed", "failed", "across"]
    kind: Literal["floor", "drop"] = "floor"
    metric: str = ""
    norm: str | None = None
    eps: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    on: Literal["interval", "point"] = "interval"

    @model_validator(mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("metric"):
            return {**given, "metric": str(given.get("name", "")).partition("@")[0]}
        return given


class CalibrationBin(_Frozen):
    """Predictions whose confidence lies in [low, high)."""

    low: float
    high: float
    n: int
    correct: int
    confidence: float = Field(description="mean confidence in the bin; 0 where it is empty")


class ClassRow(_Frozen):
    """Counts of one true class: images, right when clean, right after the worst case at the headline eps."""

    name: str
    n: int
    clean: int
    robust: int | None = None
    p_value: float | None = Field(
        default=None,
        description="robust share against that of all other classes: Fisher's exact test, adjusted by Holm",
    )
    fell: dict[str, int] = Field(
        default={}, description="images broken at or below the headline eps, by what broke each at its smallest"
    )
    corrupted: float | None = Field(default=None, description="share of corrupted copies that is answered rightly")


class HeatmapRef(_Frozen):
    """One heat map of a case: what was explained, how, and the evidence file that shows it."""

    method: str
    image: Literal["clean", "adversarial"]
    target: int
    error: float | None = Field(description="estimated relative error of the map")
    gap: float | None = Field(default=None, description="completeness gap")
    zero: bool = Field(default=False, description="zero everywhere: nothing here changes this logit")
    margin: float | None = Field(
        default=None, description="median half-width of the 95 % intervals, as a share of the largest value"
    )
    forwards: int
    details: dict[str, str | int | float]
    file: str

    @model_validator(mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        if isinstance(given, dict) and "gap" not in given:
            return {**given, "gap": given.get("error"), "error": None}
        return given


class Case(_Frozen):
    """One image shown on the page, with what was done to it."""

    index: int
    image: str = Field(description="hash of the pixels")
    selection: str
    outcome: Literal["broken", "survived", "wrong when clean", "not attacked"]
    label: int | None
    prediction: int
    confidence: float
    logit: float | None = Field(default=None, description="the logit that the heat maps explain")
    attack: str | None = None
    norm: str | None = None
    eps: float | None = None
    adversarial_prediction: int | None = None
    adversarial_confidence: float | None = None
    linf: float | None = None
    l2: float | None = None
    l0: int | None = Field(default=None, description="values changed")
    exact_8bit: bool | None = Field(default=None, description="the 8-bit PNG still fools the model")
    files: dict[str, str] = {}
    heatmaps: tuple[HeatmapRef, ...] = ()
    neighbours: tuple["Neighbour", ...] = ()


class ExplainerResult(_Frozen):
    """What one explanation method cost and how far its maps are off, over all images explained.

    In records made before ``median_gap`` was, the errors were completeness gaps; they are read as such.
    """

    method: str
    options: dict[str, Any]
    images: int
    forwards: int
    seconds: float
    error_name: str
    median_error: float | None
    worst_error: float | None
    median_gap: float | None = None
    worst_gap: float | None = None
    error_interval: tuple[float, float] | None = Field(default=None, description="95 %, of the median error")
    reused: int = Field(default=0, description="of the forward-equivalents, those that another method had made before")
    details: dict[str, str | int | float]

    @model_validator(mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("error_name") == "completeness gap":
            gaps = {"median_gap": given.get("median_error"), "worst_gap": given.get("worst_error")}
            return {**given, **gaps, "error_name": "relative error", "median_error": None, "worst_error": None}
        return given


class MeasureResult(_Frozen):
    """How good one method's maps are by one measure, over all images; and against edges, image by image.

    ``difference`` is the method's mean minus that of the Sobel control; ``beats`` tells whether its interval lies on
    the better side of 0, None for the controls themselves.
    """

    method: str
    measure: str
    better: Literal["higher", "lower"]
    n: int
    mean: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    beats: bool | None = None
    forwards: int = Field(default=0, description="forward-equivalents that one map of the method took")
    control: bool = False


class StabilityRow(_Frozen):
    """How far a method's maps move under one kind of change at one eps."""

    method: str
    change: Literal["noise", "attack, prediction held", "attack, prediction flipped", "attack on the map"]
    norm: str
    eps: float
    n: int
    quantity: str
    mean: float
    low: float
    high: float


class ClassFocus(_Frozen):
    """Where a method's maps lie on average over the images of one class."""

    method: str
    name: str
    n: int
    share: float = Field(description="share of the positive relevance in the heaviest window, of a 64th of the image")
    chance: float | None = Field(
        default=None,
        description="what 99 % of means of as many maps, drawn from all classes, stay below; None with one class",
    )
    place: tuple[float, float] = Field(description="middle of that window, as shares of height and width")
    inside: float | None = Field(default=None, description="share of the positive relevance inside the object")
    alarm: bool
    file: str


class Neighbour(_Frozen):
    """A training image that lies near a case in the model's feature space."""

    index: int
    label: str
    distance: float = Field(description="1 - cosine of the features")
    file: str


class Epoch(_Frozen):
    """One epoch of training: loss, and right answers on training batches and on the validation split.

    Epoch 0 is the model as it came, before fine-tuning; its ``n`` is 0.
    """

    epoch: int
    loss: float
    correct: int
    n: int
    validation_correct: int
    validation_n: int
    validation_robust: int | None = None
    validation_robust_n: int | None = None
    learning_rate: float
    seconds: float
    recovered: bool = Field(default=False, description="done again with a stronger attack after a collapse")


class Training(_Frozen):
    """How a model was made."""

    objective: str
    options: dict[str, Any]
    epochs: tuple[Epoch, ...]
    selected_epoch: int
    selected_by: str
    attack: str | None = Field(default=None, description="what the validation split was attacked with")
    stopped: str | None = Field(default=None, description="why training ended before its last epoch")
    begun_with: str | None = Field(default=None, description="SHA-256 of the weights before the first step")


class Model(_Frozen):
    """Which classifier was judged; ``class_map`` gives the number of its class that stands for each of the data's."""

    source: str
    architecture: str
    parameters: int
    sha256: str
    input_size: tuple[int, int] | None = None
    training: Training | None = None
    class_map: dict[str, int] | None = None


class Latency(_Frozen):
    """How long a batch takes, in seconds: median and 95th percentile."""

    batch: int
    runs: int
    p50: float
    p95: float


class Cost(_Frozen):
    """What a forward pass costs; ``flops`` is of one image, and not known of a black box."""

    flops: int | None
    weight_bytes: int
    threads: int
    latencies: tuple[Latency, ...]


class Data(_Frozen):
    """Which images were used; ``sha256`` covers their pixels and labels in order."""

    name: str
    split: str
    n: int
    total: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    sha256: str
    selection: str
    eight_bit: bool = True
    skipped: int = Field(default=0, description="files that could not be decoded and were left out, as asked")


class PairedMetric(_Frozen):
    """The same metric of two runs on the same images: b minus a."""

    name: str
    norm: str | None = None
    eps: float | None = None
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float


class Side(_Frozen):
    """One of the two runs that are compared."""

    name: str
    run: str
    model: Model
    metrics: tuple[Metric, ...]
    attacks: tuple[AttackResult, ...]
    classes: tuple[ClassRow, ...]
    passes: Passes
    preflight: tuple[Check, ...] = ()
    explanations: tuple[ExplainerResult, ...] = ()
    measures: tuple[MeasureResult, ...] = ()
    stability: tuple[StabilityRow, ...] = ()
    cost: Cost | None = None
    device: str = ""
    cases: tuple[Case, ...] = ()
    options: dict[str, Any] = {}


class Moved(_Frozen):
    """An image that only one of two models keeps; the attack is the one that broke the other at its smallest eps."""

    index: int
    image: str
    moved: Literal["won", "lost"] = Field(description="won: only a was broken; lost: only b was")
    label: int
    attack: str
    norm: str
    eps: float
    prediction: int | None = Field(description="what the model that fell says; audits of before did not keep it")


class Comparison(_Frozen):
    """Two runs on the same images; a is the baseline."""

    a: Side
    b: Side
    paired: tuple[PairedMetric, ...]
    options_changed: dict[str, tuple[str, str]]
    forced: bool = False
    differs: tuple[Literal["images", "attacks"], ...] = Field(default=(), description="what --force let through")
    moved: tuple[Moved, ...] = ()


class OverviewRow(_Frozen):
    """One of many runs that are put side by side; ``paired`` is against the first, ``why`` tells where it is not."""

    name: str
    architecture: str
    model: str
    data: str
    images: str = Field(description="SHA-256 of pixels and labels in order")
    n: int
    norm: str
    eps: float
    metrics: tuple[Metric, ...]
    verdict: Verdict
    raised: int
    started: str
    paired: PairedMetric | None = None
    p_value: float | None = Field(default=None, description="McNemar's, adjusted by Holm for the runs in the table")
    why: str = ""


class TuningTrial(_Frozen):
    """One set of training options that was tried; shares are of the validation split."""

    number: int
    state: Literal["finished", "given up", "diverged"]
    options: dict[str, Any]
    clean: float | None
    robust: float | None
    epochs: int
    seconds: float
    front: bool = Field(description="no other trial is as good in both")


class Tuning(_Frozen):
    """A search for training options."""

    trials: tuple[TuningTrial, ...]
    best: int
    validation_n: int
    shared: bool


class CorruptionRow(_Frozen):
    """Right answers under one corruption at one severity."""

    name: str
    severity: int
    n: int
    correct: int
    file: str | None = Field(default=None, description="one image, corrupted as it was judged; at some severities")


class OtherThreat(_Frozen):
    """What a threat other than a norm ball did to the images that are right when clean."""

    name: Literal["spatial", "patch"]
    options: dict[str, Any]
    attempted: int
    broken: int
    control_broken: int | None = None
    control: str | None = None
    target: int | None = Field(default=None, description="the class that every image was to be taken for")
    aimed: int | None = Field(default=None, description="images right when clean, of other classes than the target")
    reached: int | None = Field(default=None, description="those of them that are taken for the target")
    control_reached: int | None = None
    forward: int
    backward: int
    seconds: float
    file: str | None = Field(default=None, description="the patch, to print")


class Evidence(_Frozen):
    """How the counted failures, over all eps, are kept: as 8-bit images, or only as floats.

    ``withdrawn`` are failures that the image alone did not repeat; they are not counted.
    """

    failures: int
    eight_bit: int
    only_float: int
    withdrawn: int = 0


class Flow(_Frozen):
    """How many images of one class, right when clean, an attack at the headline eps turned into another class."""

    label: int
    prediction: int
    count: int


class Certified(_Frozen):
    """What was proved and what was broken at one eps, of the same classifier on the same images.

    ``low`` and ``high`` are the lower end of the interval of the proved share and the upper end of that of the share
    left standing.
    """

    method: Literal["bounds", "smoothing"]
    norm: str
    eps: float
    n: int
    certified: int
    broken: int = Field(description="wrong when clean, or broken by an attack")
    low: float
    high: float
    contradictions: int = 0
    forward: int = Field(default=0, description="passes of votes and of attacks on them; bounds take none")
    backward: int = 0
    details: dict[str, Any] = {}

    @model_validator(mode="after")
    def _possible(self) -> "Certified":
        if not (self.n >= 1 and 0 <= self.certified <= self.n and 0 <= self.broken <= self.n):
            raise ValueError(f"{self.certified} proved and {self.broken} broken of {self.n} cannot be")
        return self


class Environment(_Frozen):
    """Where and when a run was made."""

    python: str
    platform: str
    device: str
    threads: int
    packages: dict[str, str]
    started: str
    seconds: float
    command: str
    notes: tuple[str, ...] = Field(default=(), description="how the work differed from what was asked for")


class Record(_Frozen):
    """Everything a page is made from."""

    format: Literal[1] = 1
    verb: Literal["train", "audit", "harden", "explain", "compare", "tune"]
    version: str
    verdict: Verdict = "NO GATE"
    gates: tuple[Gate, ...] = ()
    exit_code: int = 0
    model: Model | None = None
    data: Data | None = None
    metrics: tuple[Metric, ...] = ()
    paired: tuple["PairedMetric", ...] = Field(default=(), description="against the baseline, on the same images")
    baseline: str | None = None
    attacks: tuple[AttackResult, ...] = ()
    seeds: tuple[SeedRun, ...] = ()
    agreement: Agreement | None = None
    passes: Passes = Passes()
    preflight: tuple[Check, ...] = ()
    flags: tuple[Check, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    calibration_attacked: tuple[CalibrationBin, ...] = ()
    explanations: tuple[ExplainerResult, ...] = ()
    measures: tuple[MeasureResult, ...] = ()
    stability: tuple[StabilityRow, ...] = ()
    focus: tuple[ClassFocus, ...] = ()
    corruptions: tuple[CorruptionRow, ...] = ()
    others: tuple[OtherThreat, ...] = ()
    certified: tuple[Certified, ...] = ()
    evidence: Evidence | None = None
    flows: tuple[Flow, ...] = ()
    cases: tuple[Case, ...] = ()
    training: Training | None = None
    cost: Cost | None = None
    comparison: Comparison | None = None
    overview: tuple[OverviewRow, ...] = ()
    tuning: Tuning | None = None
    environment: Environment
    options: dict[str, Any] = {}
    origins: dict[str, str] = Field(default={}, description="where each option came from: default, given, ...")
    headline_eps: Annotated[float | None, Field(description="eps of the robust accuracy on the first screen")] = None

    @property
    def checks(self) -> tuple[Check, ...]:
        """All trust checks: those before the attacks, and the flags raised by what the attacks met."""
        return (*self.preflight, *self.flags)

    def metric(self, name: str, **match: object) -> Metric | None:
        """Find the first metric of that name whose fields equal ``match``; None where it was not run."""
        return find_metric(self.metrics, name, **match)


def find_metric(metrics: tuple[Metric, ...], name: str, **match: object) -> Metric | None:
    """Find the first metric of that name whose other fields equal ``match``; None where it was not run."""
    for metric in metrics:
        if metric.name == name and all(getattr(metric, key) == value for key, value in match.items()):
            return metric
    return None
