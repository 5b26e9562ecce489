"""`kora adapt`: from a folder of pictures to the model that is best by validation."""

from pathlib import Path

#: The backbone unless another is named.
BACKBONE = "vit_small_patch14_dinov2.lvd142m"


def results_folder(place: Path) -> Path:
    """Where the results for a folder or table of pictures go, unless another folder is named."""
    place = place.resolve()
    name = place.stem if place.suffix.lower() == ".csv" else place.name
    return Path("runs") / f"adapt_{name}"
