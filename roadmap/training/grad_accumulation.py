"""How a batch is shared out: passes of a micro-batch, over devices and one after the other. Imports no torch."""

from roadmap.config.recipe import RecipeConfig
from roadmap.errors import ConfigError


def micro_batch_size(recipe: RecipeConfig) -> int:
    """Return the images of one forward pass: those of the recipe, else the whole batch."""
    return recipe.micro_batch or recipe.batch_size


def check_micro_batch(recipe: RecipeConfig, num_devices: int) -> None:
    """Raise ConfigError where the batch is no whole number of passes over all devices."""
    if num_devices > 1 and recipe.micro_batch is None:
        raise ConfigError(
            f"recipe.micro_batch=null: one forward pass takes the whole batch, so {num_devices} devices have nothing "
            f"to share; give a micro-batch, such as recipe.micro_batch={max(1, recipe.batch_size // num_devices)}"
        )
    images = num_devices * micro_batch_size(recipe)  # of one pass on all devices
    if recipe.batch_size % images:
        raise ConfigError(
            f"recipe.batch_size={recipe.batch_size}: is no whole number of passes over {num_devices} devices x "
            f"recipe.micro_batch={recipe.micro_batch} = {images} images"
        )
