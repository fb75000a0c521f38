"""The verbs as functions. Each returns a `Run`; with ``out`` it also writes the run folder and its page."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustcv import runs
from robustcv.errors import UserError
from robustcv.options import defaults_of, options_of, require_counts
from robustcv.records import Check
from robustcv.running import Run, finish, leaving, run

if TYPE_CHECKING:
    from torch import nn

    from robustcv.data import Images
    from robustcv.verbs.prepare import Result

Eps = float | str | Sequence[float | str]
MethodOptions = Mapping[str, Mapping[str, Any]] | Sequence[str]


def audit(
    classifier: Any,
    images: Any,
    labels: Any = None,
    *,
    weights: str | None = None,
    class_map: Path | str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    resize: int | None = None,
    skip_bad: bool = False,
    n: int | None = None,
    norm: str = "linf",
    eps: Eps = "8/255",
    sweep: bool = True,
    effort: str = "standard",
    attacks: Sequence[str] | None = None,
    eight_bit: bool = False,
    eot: int = 1,
    also: Sequence[str] = (),
    certify: Sequence[str] = (),
    explain: Sequence[str] = ("integrated_gradients",),
    measures: Sequence[str] = (),
    cases: int = 16,
    set: MethodOptions = (),
    fail_under: Mapping[str, float] | Sequence[str] = (),
    max_drop: Mapping[str, float] | Sequence[str] = (),
    baseline: Path | str | None = None,
    gate_on: Literal["interval", "point"] = "interval",
    skip_preflight: bool = False,
    format: Sequence[str] = ("html",),
    seeds: int = 1,
    agreement: int = 0,
    max_report_mb: float | None = None,
    seed: int = 0,
    batch_size: int = 128,
    precision: str = "float32",
    compile: bool = False,
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Measure how often a classifier is right, how easily it is broken, and show what it looks at.

    Clean accuracy and calibration; robust accuracy as the worst case per image over all attacks, at each eps of a
    sweep, every success checked again on the plain classifier; heat maps of clean and attacked images.

    Parameters
    ----------
    classifier
        A run folder, torchvision:NAME, timm:NAME, onnx:FILE (a black box), or py:FILE:FUNCTION, which returns a module
        from [0, 1] images to logits.
    images
        A data set by name (digits, shapes, cifar10, cifar100, mnist, fashion-mnist, svhn), a folder, tar or zip
        archive of split/class/image, csv:FILE (path,label), shards:PATTERN (WebDataset), hf:NAME, or from Python a
        tensor, Dataset or DataLoader.
    labels
        True classes, for a tensor of images.
    weights
        File with the weights: safetensors, or a torch file that holds nothing but tensors.
    class_map
        Where the model has more classes than the data: a CSV file of lines "class of the data,class of the model" (by
        name or by number from 0); the model is asked about these classes alone.
    data_dir
        Where copies of published data sets lie (else ROBUSTCV_DATA, else they are downloaded).
    split
        Which part of the data: test, train or val.
    resize
        Make images this many pixels square.
    skip_bad
        Leave out files that cannot be decoded, and count them on the page.
    n
        Number of images, drawn class by class; the same n and seed give the same images. All where not given.
    norm
        linf, l2, l1 or l0.
    eps
        Radius of the ball in units of [0, 1], such as 8/255 (l0: values changed); the first one given is the headline.
    sweep
        Also try 1/4, 1/2, 2 and 4 times the largest eps, for the curve.
    effort
        quick, standard, thorough or autoattack: which attacks run, cheapest first, each on what the others left. Where
        a check for masked gradients is raised, standard and thorough go on with AutoAttack's own schedule.
    attacks
        Attacks to run instead, in that order; `robustcv list attacks`.
    eight_bit
        Count a success within a norm ball only if the image still fools the model after rounding to 8 bits.
    eot
        Average the logits of a model with random answers over this many draws, in attacks and in judging them.
    also
        Threats beyond norm balls to measure too: corruptions (15 of them at 5 severities), spatial, patch; and maps,
        which follows the heat maps of 32 images under noise and attack.
    certify
        Lower bounds to prove beside the attacks: bounds (of the model itself, for ReLU networks, at every eps tried)
        and smoothing (of the model under Gaussian noise, in L2; a hundred images).
    explain
        Explanation methods for the cases shown; `robustcv list explainers`.
    measures
        How good their maps are, on 32 images drawn by the seed: `robustcv list measures`, or all.
    cases
        Images shown on the page: half drawn by the seed, half those broken at the smallest eps.
    set
        Options of methods, such as pgd.steps=50.
    fail_under
        Gates, such as clean_accuracy=0.9, corruption_accuracy=0.6 or robust_accuracy@linf:8/255=0.4 (the threat may be
        left out where one eps is given): exit 3 when the interval lies below, 4 when it straddles.
    max_drop
        Gates on the difference to the baseline, such as robust_accuracy=0.02: image by image, on the same images.
    baseline
        The run folder of an earlier audit.
    gate_on
        Hold gates against the interval, or against the point estimate alone.
    skip_preflight
        Leave out the checks before the attacks; the page says so for good.
    format
        Forms of the report to write beside the page: md, junit, card, csv.
    seeds
        Run the attacks again with this many seeds in all, and tell the spread.
    agreement
        Run each attack alone on this many images, and tell which break the same ones.
    max_report_mb
        Hold the page to this many MB: pictures become previews, then cases are left out, and the page says so.
    seed
        Seed of every random choice.
    batch_size
        Images a block.
    precision
        float32, or bf16: attacks take their gradients in bfloat16, 1.7 times as fast where the processor or GPU has
        matrix units; whatever is counted is still judged in float32.
    compile
        Attacks ask a form of the model made by torch.compile: worth its minute on a GPU and a long audit, not on
        processors. Whatever is counted is still judged by the model as it is.
    device
        auto, cpu, cuda or cuda:N.
    out
        The run folder. From Python, None writes nothing.
    resume
        Go on with the interrupted run in that folder.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals())
    from robustcv.report import require_formats
    from robustcv.verbs.audit import audit as verb

    require_formats(options["format"])

    return run(audit, options, out, resume, quiet, classifier, images, labels, verb)


def train(
    images: Any,
    labels: Any = None,
    *,
    model: str = "small_cnn",
    init: str | None = None,
    class_map: Path | str | None = None,
    data_dir: str | None = None,
    resize: int | None = None,
    skip_bad: bool = False,
    epochs: int = 12,
    minutes: float | None = None,
    patience: int | None = None,
    objective: str = "standard",
    eps: Eps = "8/255",
    norm: str = "linf",
    steps: int = 7,
    against: Sequence[str] = (),
    eps_warmup: float = 0.0,
    awp: float = 0.0,
    set: MethodOptions = (),
    optimizer: str = "adam",
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    schedule: str = "one-cycle",
    average: str = "none",
    backbone_rate: float = 1.0,
    frozen_epochs: int = 0,
    gradual: bool = False,
    augment: Sequence[str] | None = None,
    mix: str = "none",
    label_smoothing: float = 0.0,
    precision: str = "float32",
    export: Sequence[str] = (),
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a classifier, keep its best validation epoch, and read the test split once.

    Parameters
    ----------
    images
        A data set by name, a folder or archive, csv:FILE, shards:PATTERN, hf:NAME, or from Python a tensor, Dataset or
        DataLoader.
    labels
        True classes, for a tensor of images.
    model
        Architecture: a name from `robustcv list architectures`, any network of torchvision, or timm:NAME.
    init
        Weights to begin with: published (torchvision's or timm's own), a file, or a run folder. The head is made new
        where the classes differ.
    class_map
        With --init, which rows of the old head are taken over for which classes, a file as for `audit`; else those of
        equal names.
    data_dir
        Where copies of published data sets lie (else ROBUSTCV_DATA, else they are downloaded).
    resize
        Make images this many pixels square.
    skip_bad
        Leave out files that cannot be decoded, and count them on the page.
    epochs
        Passes over the training images.
    minutes
        Stop after this long, the schedule at its end, with the best model so far.
    patience
        Stop when this many epochs in a row were no better on the validation split.
    objective
        standard; pgd-at, trades; with one step fast (n-fgsm), fgsm-rs, fgsm-pgi, gradalign: `robustcv list objectives`.
    eps
        Radius of the ball to train against, in units of [0, 1].
    norm
        Norm of the ball to train against.
    steps
        Steps of the attack in training (pgd-at, trades).
    against
        Threats to train against in place of eps and norm, each image against one of them: linf:8/255, l2:0.5,
        gaussian:0.25 (for smoothing), corruptions (four that audits leave out), patch, spatial.
    eps_warmup
        Share of training over which eps, and with it the steps of pgd-at and trades in a ball, rises to its full size.
    awp
        Size of adversarial weight perturbations, such as 0.005; 0 for none.
    set
        Options of the objective, such as trades.beta=3.
    optimizer
        adam or sgd.
    learning_rate
        Highest learning rate of the schedule.
    weight_decay
        Decay of the weights, decoupled for adam.
    schedule
        one-cycle, cosine or slow-start.
    average
        none, ema (exponential average of the weights) or swa (equal average over the last quarter).
    backbone_rate
        Learning rate of the first layers as a share of the head's, with --init.
    frozen_epochs
        Epochs in which the head alone learns, with --init.
    gradual
        Then let one more stage of the network learn each epoch, from the head down.
    augment
        Of crop, resized-crop (a part of the image made as large as all of it, as for ImageNet), flip, rotate, colour,
        cutout, trivial (TrivialAugment), augmix, or none; by default crop, and flip where a mirrored image keeps its
        class.
    mix
        none, mixup or cutmix.
    label_smoothing
        Share of the probability spread over all classes.
    precision
        float32, or bf16 for the passes of training and of the attack that validates; answers are judged in float32.
    export
        Other forms to write the model in: onnx.
    batch_size
        Images a step.
    seed
        Seed of every random choice.
    device
        auto, cpu, cuda or cuda:N.
    out
        The run folder. From Python, None writes nothing.
    resume
        Go on with the interrupted run in that folder, from its last finished epoch.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals(), keep=("model",))
    from robustcv.verbs.train import check_training_options
    from robustcv.verbs.train import train as verb

    check_training_options(options)

    def call(model: Any, images: Any, labels: Any, **rest: Any) -> "Result":
        return verb(images, labels, **rest)

    return run(train, options, out, resume, quiet, model, images, labels, call)


def harden(
    classifier: Any,
    images: Any = None,
    labels: Any = None,
    *,
    weights: str | None = None,
    data_dir: str | None = None,
    resize: int | None = None,
    skip_bad: bool = False,
    epochs: int = 5,
    minutes: float | None = None,
    patience: int | None = None,
    objective: str = "pgd-at",
    eps: Eps = "8/255",
    norm: str = "linf",
    steps: int = 7,
    against: Sequence[str] = (),
    eps_warmup: float = 0.0,
    awp: float = 0.0,
    set: MethodOptions = (),
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "one-cycle",
    average: str = "none",
    augment: Sequence[str] | None = None,
    mix: str = "none",
    label_smoothing: float = 0.0,
    precision: str = "float32",
    audits: bool = True,
    n: int = 500,
    effort: str = "quick",
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Fine-tune a trained classifier on attacked images, audit it before and after, and compare the two.

    The epoch that is most robust on validation images is kept; the audits use test images, which training never sees.

    Parameters
    ----------
    classifier
        What `audit` takes: a run folder, torchvision:NAME, timm:NAME or py:FILE:FUNCTION, or from Python a module.
    images
        Training data; by default what the model was trained on.
    labels
        True classes, for a tensor of images.
    weights
        File with the weights, as for `audit`.
    data_dir
        Where copies of published data sets lie.
    resize
        Make images this many pixels square.
    skip_bad
        Leave out files that cannot be decoded, and count them on the page.
    epochs
        Passes over the training images.
    minutes
        Stop after this long, the schedule at its end, with the best model so far.
    patience
        Stop when this many epochs in a row were no better on the validation split.
    objective
        standard; pgd-at, trades; with one step fast (n-fgsm), fgsm-rs, fgsm-pgi, gradalign: `robustcv list objectives`.
    eps
        Radius of the ball to train against, in units of [0, 1].
    norm
        Norm of the ball to train against.
    steps
        Steps of the attack in training (pgd-at, trades).
    against
        Threats to train against in place of eps and norm, each image against one of them: linf:8/255, l2:0.5,
        gaussian:0.25 (for smoothing), corruptions (four that audits leave out), patch, spatial.
    eps_warmup
        Share of training over which eps, and with it the steps of pgd-at and trades in a ball, rises to its full size.
    awp
        Size of adversarial weight perturbations, such as 0.005; 0 for none.
    set
        Options of the objective, such as trades.beta=3.
    optimizer
        adam or sgd.
    learning_rate
        Highest learning rate of the schedule.
    weight_decay
        Decay of the weights, decoupled for adam.
    schedule
        one-cycle, cosine or slow-start.
    average
        none, ema (exponential average of the weights) or swa (equal average over the last quarter).
    augment
        Of crop, resized-crop (a part of the image made as large as all of it, as for ImageNet), flip, rotate, colour,
        cutout, trivial (TrivialAugment), augmix, or none; by default crop, and flip where a mirrored image keeps its
        class.
    mix
        none, mixup or cutmix.
    label_smoothing
        Share of the probability spread over all classes.
    precision
        float32, or bf16 for the passes of training and of the attack that validates; answers are judged in float32.
    audits
        Audit the model before and after on the same test images, and show the comparison on the page.
    n
        Test images of those audits, at most.
    effort
        Effort of those audits; see `audit`.
    batch_size
        Images a step.
    seed
        Seed of every random choice; the validation split of the same seed is held out again.
    device
        auto, cpu, cuda or cuda:N.
    out
        The run folder. From Python, None writes nothing.
    resume
        Go on with the interrupted run in that folder, from its last finished epoch.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals())
    from robustcv.verbs.harden import harden as verb
    from robustcv.verbs.train import check_training_options

    check_training_options(options)
    call = functools.partial(verb, audit_defaults=defaults_of(audit), out=out)
    return run(harden, options, out, resume, quiet, classifier, images, labels, call)


def tune(
    images: Any,
    labels: Any = None,
    *,
    model: str = "small_cnn",
    trials: int = 20,
    objective: str | Sequence[str] = ("standard",),
    storage: str | None = None,
    data_dir: str | None = None,
    resize: int | None = None,
    skip_bad: bool = False,
    epochs: int = 6,
    eps: Eps = "8/255",
    norm: str = "linf",
    steps: int = 7,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Search for training options, judged on validation images, and show clean against robust accuracy.

    Learning rate, weight decay, augmentation, label smoothing, the objective and its weight; trials that fall behind
    are given up. The best options are written as best.toml, for `robustcv train --config`.

    Parameters
    ----------
    images
        A data set by name, a folder or archive, csv:FILE, shards:PATTERN, hf:NAME, or from Python a tensor, Dataset or
        DataLoader.
    labels
        True classes, for a tensor of images.
    model
        Architecture; `robustcv list architectures`.
    trials
        Trials to finish, counting those that others have run in the same study.
    objective
        Objectives to choose from, such as standard,pgd-at,trades.
    storage
        Database of the study, which any number of processes and machines may work on: sqlite:///FILE.db or the address
        of a server. By default a file in the run folder.
    data_dir
        Where copies of published data sets lie.
    resize
        Make images this many pixels square.
    skip_bad
        Leave out files that cannot be decoded, and count them on the page.
    epochs
        Epochs of each trial.
    eps
        Radius of the ball to train against, in units of [0, 1].
    norm
        Norm of the ball to train against.
    steps
        Steps of the attack in training.
    batch_size
        Images a step.
    seed
        Seed of every random choice.
    device
        auto, cpu, cuda or cuda:N.
    out
        The run folder. From Python, None writes nothing.
    resume
        Go on with the interrupted search in that folder.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals(), keep=("model",))
    from robustcv.verbs.tune import tune as verb

    defaults = defaults_of(train)

    def call(model: Any, images: Any, labels: Any, **rest: Any) -> "Result":
        return verb(images, labels, defaults=defaults, **rest)

    return run(tune, options, out, resume, quiet, model, images, labels, call)


def explain(
    classifier: Any,
    images: Any = None,
    targets: Any = None,
    *,
    labels: Any = None,
    method: str | Sequence[str] = ("integrated_gradients", "gradient_shap", "shapley"),
    files: Sequence[str] = (),
    measures: str | Sequence[str] = (),
    budget: int | None = None,
    eps: Eps = (),
    norm: str = "linf",
    neighbours: str | None = None,
    cases: int = 16,
    weights: str | None = None,
    class_map: Path | str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    resize: int | None = None,
    skip_bad: bool = False,
    n: int | None = 8,
    set: MethodOptions = (),
    max_report_mb: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Show what a classifier looks at, by several methods, each map with its error; how good each method is.

    Parameters
    ----------
    classifier
        A run folder, torchvision:NAME, timm:NAME, onnx:FILE or py:FILE:FUNCTION.
    images
        A data set by name, a folder or archive, csv:FILE, shards:PATTERN, hf:NAME, or from Python a tensor, Dataset or
        DataLoader.
    targets
        Classes whose logit is explained, one for all images or one each; the predicted ones where not given.
    labels
        True classes, for a tensor of images, where they are known.
    method
        Explanation methods; `robustcv list explainers`. ig is integrated_gradients.
    files
        Image files to explain, in place of a data set.
    measures
        Measures of the maps, each beside maps that know nothing of the model, or all; `robustcv list measures`.
    budget
        Let every method spend about so many forward passes a map, so that they can be compared.
    eps
        Follow the maps under noise and attacks of these sizes, such as 2/255 8/255.
    norm
        linf, l2, l1 or l0, of eps.
    neighbours
        A data set whose training images are searched for the nearest ones in the model's feature space.
    cases
        Images shown on the page; the others count in measures and means.
    weights
        File with the weights: safetensors, or a torch file that holds nothing but tensors.
    class_map
        Where the model has more classes than the data: a CSV file of lines "class of the data,class of the model" (by
        name or by number from 0); the model is asked about these classes alone.
    data_dir
        Where copies of published data sets lie.
    split
        Which part of the data: test, train or val.
    resize
        Make images this many pixels square.
    skip_bad
        Leave out files that cannot be decoded, and count them on the page.
    n
        Number of images at most, drawn class by class.
    set
        Options of methods, such as integrated_gradients.error=0.02 or shapley.fill=blur.
    max_report_mb
        Hold the page to this many MB: pictures become previews, then cases are left out, and the page says so.
    seed
        Seed of every random choice.
    batch_size
        Images explained at a time.
    device
        auto, cpu, cuda or cuda:N.
    out
        The run folder. From Python, None writes nothing.
    resume
        Accepted for a folder that an interrupted run has left; the work is done again.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals(), keep=("labels",))
    options["targets"] = targets.tolist() if hasattr(targets, "tolist") else targets
    from robustcv.verbs.explain import explain as verb

    return run(explain, options, out, resume, quiet, classifier, images, targets, verb)


def compare(
    *folders: Path | str,
    names: Sequence[str] | None = None,
    force: bool = False,
    out: Path | str | None = None,
) -> Run:
    """Compare audits: two image by image, more of them in a table; the first is the baseline.

    Parameters
    ----------
    folders
        Folders of two audits or more, or one folder that holds them.
    names
        What to call them on the page.
    force
        Compare two runs on the images in common where the sets differ; the page says so.
    out
        The run folder. From Python, None writes nothing.
    """
    from robustcv.verbs.compare import compare as verb
    from robustcv.verbs.overview import audits_in, overview
    from robustcv.verbs.pairing import Saved

    places = [Path(folder) for folder in folders]
    inside = len(places) == 1 and places[0].is_dir() and not (places[0] / "report.json").exists()
    found = audits_in(places[0]) if inside else None
    n = len(places) if found is None else len(found)
    if n < 2:
        raise UserError("RCV-E084", "one run alone", "a comparison needs two", "robustcv compare RUN_A RUN_B")
    if names is not None and len(names) != n:
        what = "two runs" if n == 2 else f"{n} runs"
        raise UserError("RCV-E084", f"{len(names)} names for {what}", "each run gets one", "--names before after")
    with leaving(out):
        if out is not None:
            runs.open_folder(Path(out), resume=False, fingerprint="")
        saved = found or [Saved.read(place) for place in places]
        if len(saved) > 2:
            return finish(overview(saved, names), out)
        pair = None if names is None else (str(names[0]), str(names[1]))
        return finish(verb(saved[0], saved[1], names=pair, force=force), out)


def doctor(
    classifier: Any = None,
    images: Any = None,
    labels: Any = None,
    *,
    weights: str | None = None,
    class_map: Path | str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    resize: int | None = None,
    n: int = 512,
    norm: str = "linf",
    eps: Eps = "8/255",
    seed: int = 0,
    batch_size: int = 128,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[Check, ...]:
    """Check this machine and, where a model and data are given, whether the model is fed and read as it should be.

    The checks are those that come before every audit. Nothing is written.

    Parameters
    ----------
    classifier
        What `audit` takes.
    images
        What `audit` takes.
    labels
        True classes, for a tensor of images.
    weights
        File with the weights, as for `audit`.
    class_map
        Which of the model's classes the data has, as for `audit`.
    data_dir
        Where copies of published data sets lie.
    split
        Which part of the data.
    resize
        Make images this many pixels square.
    n
        Number of images, at most.
    norm
        linf, l2, l1 or l0.
    eps
        Radius of the ball in units of [0, 1].
    seed
        Seed of the choice of images.
    batch_size
        Images a batch.
    device
        auto, cpu, cuda or cuda:N.
    quiet
        Say nothing on stderr.
    """
    options = options_of(locals())
    require_counts(options)
    from robustcv.runtime import progress_for
    from robustcv.verbs.doctor import doctor as verb

    return verb(classifier, images, labels, options=options, progress=progress_for(quiet=quiet))


def verify(run: Path | str, *, model: Any = None, weights: str | None = None, quiet: bool = False) -> tuple[Check, ...]:
    """Replay the evidence of a saved audit: hashes, weights, counts, and every failure alone, in float32, on the CPU.

    Parameters
    ----------
    run
        The run folder of an audit.
    model
        The model, where it is not at the place the run names, or came from Python.
    weights
        File with the weights, as for `audit`.
    quiet
        Say nothing on stderr.

    Returns
    -------
    tuple of Check
        What was held against what; one that does not hold is raised, and lists what is wrong.
    """
    from robustcv.runtime import progress_for
    from robustcv.verbs.verify import verify as verb

    return verb(Path(run), model=model, weights=weights, progress=progress_for(quiet=quiet))


def load_classifier(spec: str, weights: str | None = None) -> "nn.Module":
    """Load a classifier: a run folder, torchvision:NAME, timm:NAME, onnx:FILE or py:FILE:FUNCTION."""
    from robustcv.models import load

    return load(spec, weights).classifier


def load_images(spec: str, split: str = "test", n: int | None = None, seed: int = 0) -> "Images":
    """Load images by name or path, all of them or a stratified subset of n."""
    from robustcv.data import load, stratified

    images = load(spec, split=split)
    return images if n is None else images.take(stratified(images.labels, n, seed))
