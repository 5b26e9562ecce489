"""Frozen vision transformers of timm; the only file that knows how timm builds models.

Shapes: B images, H and W pixels, N patch tokens, D width, P prefix tokens (CLS, registers).
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kora.backbone.frozen_cast import autocast_type
from kora.backbone.images import chosen_normalisation, resized
from kora.backbone.weights import (
    by_hand,
    load_file_exactly,
    require_fetchable,
    tokens_in,
    without_memory,
    without_numbers,
)

__all__ = ["MOST_PIXELS", "Backbone", "Features", "Level", "patch_of", "usual_size"]


_FEW_TOKENS = 300  # of plain attention, whose memory grows with their square


def _timm() -> Any:
    """timm with the embedded model. Its import takes half a second, which a config needs not."""
    import timm

    import kora.backbone.nano  # noqa: F401  (registers the model)

    return timm


class Level(NamedTuple):
    """Tokens of one intermediate block, after the final norm of the backbone."""

    patches: Tensor  # (B, N, D)
    prefix: Tensor  # (B, P, D); P is 0 for models without CLS and registers


class Features(NamedTuple):
    """What a backbone returns for a batch of images."""

    pooled: Tensor  # (B, D): what timm's own head would read (CLS, mean or attention pool)
    patches: Tensor  # (B, N, D), after the final norm
    prefix: Tensor  # (B, P, D)
    levels: tuple[Level, ...] = ()
    layers: Tensor | None = None  # (B, E), if something reads them (layer_summaries.py)
    query: Tensor | None = None  # (B, C), for the queries of a decoder, if an adapter sends it


class Backbone(nn.Module):
    """A timm vision transformer, frozen and in eval mode, that resizes and normalises its input.

    Images are uint8 in [0, 255] or floating point in [0, 1], (B, 3, H, W), of any size. They are
    resized as a whole (antialiased, no crop) and normalised on their device with the mean,
    standard deviation and interpolation that timm's configuration names for these weights.

    Args:
        name: A timm model name, with a tag if you want one
            (`vit_base_patch16_224.augreg_in21k`), or `vit_nano`, which ships with this package.
        weights: `pretrained` (timm's hub, or the packaged file of `vit_nano`), `random`, or the
            path of a local `.safetensors` file; `~` and environment variables are expanded.
        image_size: Side in pixels at which the backbone runs, or [height, width]; None takes that
            of the weights. Position embeddings are resampled by timm.
        keep_classifier: Keep timm's own classifier. It is never used, only counted as parameters,
            as in the published notebook (configs/paper/as_published).
        mean: Replaces the mean that timm names for these weights: red, green and blue, in [0, 1].
            For weights of your own, or to repeat a published mistake; set `std` too.
        std: Replaces the standard deviation.
        gradient_checkpointing: Recompute the blocks in backward; less memory, more time.

    Raises:
        ValueError: For an unknown model, one that is not of the ViT family, weights of another
            architecture, a mean or std without three numbers, or images of the wrong type, range or
            number of channels.
        FileNotFoundError: If the weights file is not there.
        RuntimeError: If pretrained weights cannot be fetched, or the file is damaged.
    """

    model: Any  # a timm model; its attributes are not typed
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        weights: str = "pretrained",
        image_size: int | tuple[int, int] | None = None,
        keep_classifier: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        kwargs: dict[str, Any] = {} if keep_classifier else {"num_classes": 0}
        if image_size is not None:
            kwargs["img_size"] = image_size
        local = weights not in ("random", "pretrained")
        model = without_memory(lambda: _create(name, kwargs)) if local else _create(name, kwargs)
        if weights != "random":
            _load(model, name, weights, kwargs)
        self.keep_classifier = keep_classifier
        self._hold(model, name, weights, kwargs, chosen_normalisation(mean, std))
        if gradient_checkpointing:
            self.model.set_grad_checkpointing(True)

    @classmethod
    def around(cls, model: Any) -> Backbone:
        """A frozen backbone around an existing timm model; removes its classifier in place.

        Its input is that of the model: normalised pixels (B, 3, H, W) of the model's size.

        Raises:
            ValueError: It is no vision transformer of timm, or not as timm builds it by its name.
        """
        cfg = getattr(model, "pretrained_cfg", None) or {}
        name = str(cfg.get("architecture"))
        if not _timm().is_model(name):
            raise ValueError(
                f"expected a model of timm.create_model(NAME), found {type(model).__name__}"
            )
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        kwargs: dict[str, Any] = {"num_classes": 0}
        if size is not None:
            kwargs["img_size"] = size[0] if size[0] == size[1] else tuple(size)
        with without_numbers():
            usual = _create(name, kwargs)
        head = f"{cfg['classifier']}."
        mine, twin = _construction(model, head), _construction(usual, head)
        other = [key for key in sorted(mine.keys() | twin.keys()) if mine.get(key) != twin.get(key)]
        if other:
            raise ValueError(
                f"this {name} is not as timm builds it: '{other[0]}' differs. Leave out options of "
                "timm.create_model other than img_size and num_classes, and attach once."
            )
        model.reset_classifier(0)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.keep_classifier = False
        made._hold(model, name, "given", kwargs, {})
        made.normalises = False
        return made

    def _hold(
        self,
        model: Any,
        name: str,
        weights: str,
        kwargs: dict[str, Any],
        normalisation: dict[str, list[float]],
    ) -> None:
        """Freeze a timm model that was built from `kwargs`, and record what it is."""
        self.name = name
        self.weights = weights
        #: `mean` and `std` if they replace those of the weights, else empty.
        self.normalisation = normalisation
        #: Whether images are resized and normalised here.
        self.normalises = True
        self.frozen = True
        #: How attached strategies change what it computes; one entry for each that ever did.
        self.changes: list[str] = []
        self._create_kwargs = kwargs
        self.model = model
        self._fusing = [it for it in model.modules() if getattr(it, "fused_attn", False)]
        cfg = model.pretrained_cfg
        self.image_size: int | tuple[int, int] = kwargs.get("img_size") or cfg["input_size"][-1]
        #: Blocks (0-based) that every pass returns as `Features.levels`: what the head reads.
        self.levels: tuple[int, ...] = ()
        #: Gives every pass its `Features.layers`, see kora/backbone/layer_summaries.py.
        self.layer_summaries: Any = None
        self.interpolation: str = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
        for key in ("mean", "std"):
            values_3 = torch.tensor(normalisation.get(key, cfg[key]))
            self.register_buffer(key, values_3.view(1, 3, 1, 1), persistent=False)
        self.model.requires_grad_(False)
        self.train(False)

    # -- facts ---------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """D, the width of the tokens."""
        return int(self.model.embed_dim)

    @property
    def pooled_width(self) -> int:
        """Width of `Features.pooled` (equal to `width` in all ViT families but a few)."""
        return int(getattr(self.model, "num_features", self.model.embed_dim))

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.model.blocks)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels at which the backbone runs."""
        one = self.image_size
        return (one, one) if isinstance(one, int) else (one[0], one[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens, which come row by row."""
        rows, columns = self.model.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def num_prefix_tokens(self) -> int:
        """P: CLS and register tokens before the patch tokens."""
        return int(self.model.num_prefix_tokens)

    def patches_of(self, tokens: Tensor) -> Tensor:
        """The patch tokens (B, N, D) of all, without CLS, registers and the prompts at the end."""
        first = self.num_prefix_tokens
        return tokens[:, first : first + math.prod(self.grid)]

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is a CLS token (SigLIP and some others have none)."""
        return getattr(self.model, "cls_token", None) is not None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights as loaded: names, shapes and float32 bytes of the state dict.

        Read it before anything in the backbone trains. Adapted sites do not change it. Without
        storage (on the meta device) it covers only names and shapes.
        """
        digest = hashlib.sha256()
        state = {k.replace(".base.", "."): v for k, v in self.model.state_dict().items()}
        for key in sorted(state):
            tensor = state[key].detach()
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            if tensor.numel() and not tensor.is_meta:
                array = tensor.float().cpu().contiguous().numpy()
                digest.update(memoryview(array).cast("B"))
        return digest.hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What distinguishes it from other backbones, in plain types."""
        names = ("name", "weights", "sha256", "image_size")
        return {name: getattr(self, name) for name in names} | self.normalisation

    def meta_twin(self) -> Any:
        """The same architecture without storage, for checks that need no numbers."""
        with without_numbers():
            twin = _timm().create_model(self.name, **self._create_kwargs)
        return twin.eval()

    def plain_model(self, num_classes: int) -> Any:
        """timm's own model of this architecture with a classifier; its numbers are random."""
        return _timm().create_model(
            self.name, **{**self._create_kwargs, "num_classes": num_classes}
        )

    def calls(self, prepare: Callable[[Any], object] | None = None) -> list[str]:
        """Paths of the modules that a forward pass calls, in the order in which they return.

        Found by running the twin, as a model may hold modules that it never calls: timm's BEiT and
        EVA02 read `qkv.weight` directly. A module that is called twice is listed twice.

        `prepare` gets the twin before it runs, to hook something in.

        Raises:
            RuntimeError, AttributeError: From torch, if what was hooked in does not fit.
        """
        if prepare is not None:
            return _calls(self.meta_twin(), self.size, prepare)
        key = f"{self.name} {self._create_kwargs}"
        if key not in _CALLS:
            _CALLS[key] = _calls(self.meta_twin(), self.size)
        return list(_CALLS[key])

    def extra_repr(self) -> str:
        return f"{self.name}, weights={self.weights}, image_size={self.image_size}"

    # -- computation ---------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode while frozen: dropout and drop-path of frozen blocks never run."""
        super().train(mode and not self.frozen)
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize and normalise (B, 3, H, W) images for these weights, on their device."""
        x = images
        if self.normalises:
            x = (resized(images, self.size, self.interpolation) - self.mean) / self.std
        return x.to(next(self.model.parameters()).dtype)

    def _choose_attention(self, x: Tensor) -> None:
        """Take timm's plain attention where it is faster than torch's fused one.

        That is on a CPU in bfloat16, where the fused backward takes a fifth of a training step
        (docs/results/performance.md). With many tokens the fused one saves memory.
        """
        if torch.compiler.is_compiling():
            return
        plain = x.device.type == "cpu" and autocast_type(x) == torch.bfloat16
        plain = plain and math.prod(self.grid) <= _FEW_TOKENS
        for module in self._fusing:
            module.fused_attn = not plain

    def entering(self, images: Tensor, block: int) -> Tensor:
        """Tokens (B, P + N, D) that enter a block, for (B, 3, H, W) images; computes no more."""
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0])
            raise _ReachedError

        hook = self.model.blocks[block].register_forward_pre_hook(stop, prepend=True)
        try:
            self(images, levels=())
        except _ReachedError:
            return found[0]
        finally:
            hook.remove()
        raise RuntimeError(f"block {block} of {self.name} was not called")

    @contextmanager
    def from_block(self, block: int, tokens: Tensor) -> Iterator[Tensor]:
        """Passes within the block begin at this block of the model, with tokens that enter it.

        Yields:
            Images to pass: their values do not matter.
        """
        skipped = list(self.model.blocks)[:block]
        hook = self.model.blocks[block].register_forward_pre_hook(
            lambda _, inputs: (tokens, *inputs[1:]), prepend=True
        )
        for one in skipped:
            one.forward = _unchanged
        try:
            yield tokens.new_zeros(len(tokens), 3, *self.size)
        finally:
            hook.remove()
            for one in skipped:
                del one.forward

    def forward(self, images: Tensor, levels: Sequence[int] | None = None) -> Features:
        """Features of (B, 3, H, W) images; `levels` names blocks (0-based) to return as well.

        None returns those of the attribute `levels`.

        Raises:
            ValueError: For images of the wrong type, range or shape, or a level outside the depth.
        """
        levels = self.levels if levels is None else levels
        x = self.preprocess(images)
        self._choose_attention(x)
        prefix = self.num_prefix_tokens
        if self.layer_summaries is not None:
            self.layer_summaries.begin()
        taken: dict[int, Level] = {}
        if levels:
            wanted = sorted(set(levels))
            if wanted[0] < 0 or wanted[-1] >= self.depth:
                raise ValueError(
                    f"levels={list(levels)} of {self.name}: expected numbers from 0 to "
                    f"{self.depth - 1}."
                )
            tokens, raw = self.model.forward_intermediates(
                x, indices=wanted, norm=True, return_prefix_tokens=prefix > 0, output_fmt="NLC"
            )
            for number, item in zip(wanted, raw, strict=True):
                patches, first = item if isinstance(item, tuple) else (item, item[:, :0])
                taken[number] = Level(patches, first)
        else:
            tokens = self.model.forward_features(x)
        pooled = self.model.forward_head(tokens, pre_logits=True)
        chosen = tuple(taken[number] for number in levels)  # in the order asked for
        layers = None if self.layer_summaries is None else self.layer_summaries.taken()
        return Features(pooled, tokens[:, prefix:], tokens[:, :prefix], chosen, layers)


class _ReachedError(Exception):
    """Ends a pass at the block that it was for."""


def _unchanged(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In the place of a block whose output nobody needs."""
    return x


def usual_size(name: str, weights: str, *, most: int) -> int | None:
    """Side in pixels at which these weights run: as they were trained, but at most about `most`.

    None: timm's default, or there is no such model.
    """
    if not _timm().is_model(name):
        return None
    cfg = _timm().get_pretrained_cfg(name)
    native = most if cfg is None else int(cfg.input_size[-1])
    patch = patch_of(name)
    if patch is None:
        return None
    if weights != "pretrained":
        tokens = tokens_in(Path(os.path.expandvars(weights)).expanduser())
        if tokens is not None:
            native = math.isqrt(tokens) * patch
    return min(native, most // patch * patch)


def patch_of(name: str) -> int | None:
    """Side of a patch in pixels; None for a model without patches."""
    with without_numbers():
        embed = getattr(_timm().create_model(name, num_classes=0), "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    return None if patch is None else int(patch[0])


#: Pixels a side: vit_tiny then has 262,144 patch tokens, too many for any attention.
MOST_PIXELS = 8192


#: Attributes that change what a model computes, not its weights.
_OF_COMPUTATION = (
    *("num_heads", "eps", "scale", "approximate", "no_embed_class", "pool_include_prefix"),
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size"),
)


def _construction(model: Any, classifier: str) -> dict[str, Any]:
    """How a model is built but for its classifier: weights' shapes, modules, their settings."""
    from timm.layers.drop import DropPath
    from timm.layers.patch_dropout import PatchDropout

    # They are there or not by the rates of dropout, which change no answer.
    of_dropout = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
    found: dict[str, Any] = {key: weight.shape for key, weight in model.state_dict().items()}
    for path, module in model.named_modules():
        if path and not isinstance(module, of_dropout):
            found[path] = type(module).__name__
        for name in _OF_COMPUTATION:
            value = getattr(module, name, None)
            if isinstance(value, bool | int | float | str):
                found[f"{path}.{name}".removeprefix(".")] = value
    found["global_pool"] = getattr(model, "global_pool", None)
    return {key: value for key, value in found.items() if not f"{key}.".startswith(classifier)}


def _create(name: str, kwargs: dict[str, Any]) -> Any:
    if not _timm().is_model(name):
        stem, models = name.split(".")[0], _timm().list_models
        close = models(f"{stem}*")[:3] or difflib.get_close_matches(stem, models(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"timm {_timm().__version__} has no model '{name}'.{hint}")
    size = kwargs.get("img_size", ())  # none: that of the weights
    sides = (size,) if isinstance(size, int) else tuple(size)
    if max(sides, default=0) > MOST_PIXELS:  # before a model of that size takes all memory
        raise ValueError(
            f"model.backbone.image_size={size}: expected at most {MOST_PIXELS} pixels a side."
        )
    try:
        model: Any = _timm().create_model(name, pretrained=False, **kwargs)
    except RuntimeError as error:
        tags = _timm().list_models(f"{name.split('.')[0]}.*", include_tags=True)
        raise ValueError(
            f"timm {_timm().__version__} cannot build '{name}': {error} Weights of this "
            f"architecture: {', '.join(tags) or 'none'}."
        ) from error
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"timm cannot build '{name}' with {kwargs}: {error}. Check model.backbone.image_size "
            "(a multiple of the patch size) and that the model is a vision transformer."
        ) from error
    blocks = getattr(model, "blocks", None)
    intermediates = getattr(model, "forward_intermediates", None)
    if (
        blocks is None
        or not hasattr(model, "num_prefix_tokens")
        or not hasattr(model, "patch_embed")  # NaFlexViT has none, and no fixed grid
        or not hasattr(model, "get_classifier")  # encoders of language models do not pool
        or not hasattr(blocks[0], "attn")
        or intermediates is None  # CaiT and XCiT add their CLS token late, after these blocks
        or "return_prefix_tokens" not in inspect.signature(intermediates).parameters
    ):
        raise ValueError(
            f"'{name}' ({type(model).__name__}) is not of timm's VisionTransformer family: it has "
            "no plain sequence of attention blocks between a patch embedding and a classifier. Use "
            "a vit, deit, deit3, dinov2, dinov3, clip, siglip, eva02 or beit model."
        )
    patch = model.patch_embed.patch_size[0]
    if any(side < 1 or side % patch for side in sides):
        fitting = [max(1, round(side / patch)) * patch for side in sides]
        raise ValueError(
            f"model.backbone.image_size={size if len(sides) == 1 else list(sides)} is not a "
            f"positive multiple of {patch}, the patch size of '{name}': timm would cut off the "
            f"rest. Use {fitting[0] if len(sides) == 1 else fitting}."
        )
    return model


#: Known `Backbone.calls` of each architecture: even a pass without numbers takes time.
_CALLS: dict[str, list[str]] = {}


def _calls(
    twin: Any, size: tuple[int, int], prepare: Callable[[Any], object] | None = None
) -> list[str]:
    calls: list[str] = []
    for path, module in twin.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    if prepare is not None:
        prepare(twin)
    with torch.no_grad(), torch.device("meta"):
        image = torch.empty(1, 3, *size)
        twin.forward_head(twin.forward_features(image), pre_logits=True)
    return calls


def _load(model: Any, name: str, weights: str, kwargs: dict[str, Any]) -> None:
    packaged = model.pretrained_cfg.get("file") if weights == "pretrained" else None
    if packaged or weights != "pretrained":
        load_file_exactly(model, name, Path(packaged or os.path.expandvars(weights)).expanduser())
        return
    require_fetchable(name, model.pretrained_cfg)
    try:
        loaded = _timm().create_model(name, pretrained=True, **kwargs)
    except OSError as error:
        raise RuntimeError(
            f"Fetching the pretrained weights of '{name}' failed: {error}. {by_hand(name)}"
        ) from error
    model.load_state_dict(loaded.state_dict())
