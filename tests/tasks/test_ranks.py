"""What the processes of one training gather on the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kora.tasks.ranks import in_one_list
from tests.support.two_ranks import on_two_ranks


def gathered(rank: int) -> list[dict[str, Any]]:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    boxes = torch.arange(2.0).view(2, 1, 1).expand(2, 1 + rank, 4) + 10 * rank
    even = in_one_list([{"index": torch.tensor([rank, 2 + rank])}])
    padded = in_one_list([{"index": torch.tensor([rank, 2 + rank]), "boxes": boxes}])
    return [*even, *padded]


def test_batches_that_were_padded_to_different_sizes_come_image_by_image_in_order(
    tmp_path: Path,
) -> None:
    (even, *images), others = on_two_ranks(gathered, tmp_path)
    assert others == []
    assert even["index"].tolist() == [0, 1, 2, 3]
    assert [image["index"].tolist() for image in images] == [[0], [1], [2], [3]]
    assert [image["boxes"].shape[1] for image in images] == [1, 2, 1, 2]
    assert [image["boxes"][0, 0, 0].item() for image in images] == [0, 10, 1, 11]
