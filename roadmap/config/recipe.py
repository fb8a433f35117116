"""The keys of a recipe: optimizer, schedule, regularisation, and what of them a net takes."""

import re

from pydantic import model_validator

from roadmap.config.choices import Init, Interpolation, LrScaling, Optimizer, Precision, RecipeName, Schedule
from roadmap.config.fields import Float, Int, Section, Text, key, shown
from roadmap.errors import ConfigError

SGD, ADAMW = ("recipe.optimizer", "sgd"), ("recipe.optimizer", "adamw")
STEP, COSINE = ("recipe.schedule", "step"), ("recipe.schedule", "cosine")
LINEAR = ("recipe.lr_scaling", "linear")
# timm takes any number, and ignores parts that it does not know: `mstdinf` would be 0 (mstd is infinite above 100).
RAND_AUGMENT = re.compile(
    r"rand(-(([mn]|mmax(?!0*(-|$)))(0*(100|[1-9]\d?)|0+)|inc[01]|p(0(\.\d+)?|1(\.0+)?)"
    r"|mstd\d+(\.\d+)?|t(weights|3aw?)))*"
)
NOTATION = "timm's notation, such as rand-m9-mstd0.5-inc1: m and n from 0 to 100, mmax from 1 to 100, p from 0 to 1"
MIN_ALPHA = 1e-300  # of a Beta distribution: NumPy draws NaN from lesser ones


class RecipeConfig(Section):
    """How a net is trained. Lengths in epochs, rates per optimizer step at `batch_size` images."""

    prefix = "recipe."

    name: RecipeName = RecipeName.original
    epochs: Int = key(90, ge=1, le=100_000)
    batch_size: Int = key(256, ge=1, le=1_000_000, about="images per optimizer step, over all devices")
    micro_batch: Int | None = key(None, ge=1, le=1_000_000, about="images per forward pass; null: the whole batch")
    optimizer: Optimizer = Optimizer.sgd
    lr: Float = key(0.1, gt=0, le=1000, about="base learning rate, at `lr_batch_size`")
    lr_batch_size: Int = key(256, ge=1, le=1_000_000, about="images per step that `lr` is stated for", needs=LINEAR)
    lr_scaling: LrScaling = key(LrScaling.none, about="linear: base rate = lr x batch_size / lr_batch_size")
    min_lr: Float = key(0.0, ge=0, le=1000, about="where the cosine ends", needs=COSINE)
    warmup_epochs: Float = key(0.0, ge=0, le=100_000, about="linear from warmup_lr")
    warmup_lr: Float = key(0.0, ge=0, le=1000, about="where the warm-up begins")
    schedule: Schedule = Schedule.step
    step_epochs: Float = key(
        30.0, gt=0, le=100_000, about="schedule=step: epochs between two falls of the rate", needs=STEP
    )
    step_factor: Float = key(0.1, gt=0, le=1, needs=STEP)
    momentum: Float = key(0.9, ge=0, le=1, about="sgd", needs=SGD)
    beta1: Float = key(0.9, ge=0, lt=1, about="adamw", needs=ADAMW)
    beta2: Float = key(0.999, ge=0, lt=1, about="adamw", needs=ADAMW)
    eps: Float = key(1e-8, gt=0, le=1, about="adamw", needs=ADAMW)
    weight_decay: Float = key(1e-4, ge=0, le=100)
    decay_1d: bool = key(True, about="whether norms, biases and layer scales decay too")
    label_smoothing: Float = key(0.0, ge=0, le=0.99)
    mixup: Float = key(0.0, ge=0, le=100, about="alpha of the Beta distribution; 0 turns it off")
    cutmix: Float = key(0.0, ge=0, le=100, about="alpha of the Beta distribution; 0 turns it off")
    mix_switch: Float = key(0.5, ge=0, le=1, about="probability of cutmix where both are on")
    rand_augment: Text | None = key(None, about="timm's notation, e.g. rand-m9-mstd0.5-inc1")
    random_erasing: Float = key(0.0, ge=0, le=1, about="probability, pixel mode, one box")
    interpolation: Interpolation = key(Interpolation.bilinear, evaluation=True, about="how images are resized")
    init: Init = Init.kaiming
    layer_scale: Float | None = key(None, gt=0, le=10)
    drop_path: Float = key(0.0, ge=0, le=0.99)
    clip_grad: Float | None = key(None, gt=0, le=1_000_000, about="norm to which gradients are clipped; null: none")
    ema_decay: Float | None = key(None, gt=0, le=1, about="moving average of weights and buffers; null: none")
    precision: Precision = key(Precision.auto, evaluation=True)
    sync_batch_norm: bool = key(
        False, about="BatchNorm's statistics over all GPUs; false: of one GPU's micro-batch, as in the paper"
    )

    @property
    def images_per_pass(self) -> int:
        """Return the images of one forward pass on one device."""
        return self.micro_batch or self.batch_size

    def check_passes(self, num_devices: int) -> None:
        """Raise ConfigError where the batch is not a whole number of passes over all devices."""
        if num_devices > 1 and self.micro_batch is None:
            raise ConfigError(
                f"recipe.micro_batch=null: one forward pass takes the whole batch, so {num_devices} devices have "
                "nothing to share; take one device, or give a micro-batch, such as "
                f"recipe.micro_batch={max(1, self.batch_size // num_devices)}"
            )
        images = num_devices * self.images_per_pass
        if self.batch_size % images:
            raise ConfigError(
                f"recipe.batch_size={self.batch_size}: is not a whole number of passes over {num_devices} devices x "
                f"recipe.micro_batch={self.micro_batch} = {images} images"
            )

    @property
    def base_lr(self) -> float:
        """Return the rate that the schedule starts from, at this batch size."""
        return self.lr * self.batch_size / self.lr_batch_size if self.lr_scaling == LrScaling.linear else self.lr

    @model_validator(mode="after")
    def _check(self) -> "RecipeConfig":
        if self.batch_size % (self.micro_batch or 1):
            part = f"recipe.micro_batch={self.micro_batch}"
            raise ConfigError(f"recipe.batch_size={self.batch_size}: must be a multiple of {part}")
        if self.warmup_epochs > self.epochs:
            most = f"recipe.epochs={self.epochs}"
            raise ConfigError(f"recipe.warmup_epochs={self.warmup_epochs:g}: must be at most {most}")
        if self.rand_augment is not None and not RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ConfigError(f"recipe.rand_augment={shown(self.rand_augment)}: must be null or {NOTATION}")
        for name in ("mixup", "cutmix"):
            if 0 < (alpha := getattr(self, name)) < MIN_ALPHA:
                raise ConfigError(f"recipe.{name}={alpha:g}: must be 0 or at least {MIN_ALPHA:g}")
        for name in ("min_lr", "warmup_lr"):
            if getattr(self, name) > self.base_lr:
                value = f"{getattr(self, name):g}"
                raise ConfigError(f"recipe.{name}={value}: must be at most the base rate {self.base_lr:g}")
        return self
