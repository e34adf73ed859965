"""LoRAs in the names of kohya's trainer, of peft and of diffusers, matched to a model and added to its weights.

Only adding imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sld.checkpoints.changes import Lora
from sld.checkpoints.files import WeightsFile, open_weights
from sld.checkpoints.kinds import kind_of
from sld.checkpoints.parts import Part
from sld.checkpoints.remap import CheckpointError
from sld.checkpoints.tables import Row
from sld.config import UNetConfig
from sld.spelling import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

_TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("lora.json").read_text())
"""Patterns of "keys", with the name of a module and the role of the tensor; by the key of a network the "prefixes" of
its modules' names; "other names" of modules; and of kinds of changes what is "not read"."""

_KEYS = tuple(map(re.compile, _TABLE["keys"]))
_ROLES = {"A": "down", "B": "up"}
_METADATA, _BESIDE = "lora_adapter_metadata", "adapter_config.json"
_PEFT = "base_model.model."


class Pair(NamedTuple):
    """The tensors of a LoRA for one module, by their keys: down (r, i …), up (o, r …), and the number alpha."""

    down: str
    up: str
    alpha: str | None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file.

    Attributes:
        stated: what the user said.
        file: where the tensors are.
        pairs: by the name that the file has for the module.
        settings: of peft: alpha and the like, which then stand in no tensor.
        config: the file that the settings come from, if it is another.
    """

    stated: Lora
    file: WeightsFile
    pairs: Mapping[str, Pair]
    settings: Mapping[str, Any]
    config: Path | None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its matrices, smallest first."""
        return tuple(sorted({self.file.tensors[pair.down].shape[0] for pair in self.pairs.values()}))

    def factor(self, module: str, rank: int, alpha: float | None) -> float:
        """Return what the product of a module's matrices is multiplied by: the user's scale times alpha / rank.

        Args:
            module: its name in the file.
            rank: of the matrices.
            alpha: as a tensor of the file has it; None if there is none. Where peft's settings have none either, alpha
                is the rank.
        """
        prefix = f"{module.split('.')[0]}."
        own = {name.removeprefix(prefix): value for name, value in self.settings.items() if name.startswith(prefix)}
        own = own or self.settings
        if alpha is None:
            name = module.removeprefix(_PEFT).removeprefix(prefix)
            patterns = (own.get("alpha_pattern") or {}).items()
            special = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name))
            alpha = next(special, own.get("lora_alpha"))
        if alpha is None:
            return self.stated.scale
        return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank) * self.stated.scale


class Addition(NamedTuple):
    """A LoRA's pair with the parameter that its product is added to."""

    part: str
    parameter: str
    module: str
    pair: Pair


def open_lora(stated: Lora) -> LoraFile:
    """Open a LoRA's file and pair its tensors.

    Raises:
        CheckpointError: the file is none, a key is unknown or of a kind that is not read, or one of two matrices is
            missing; names file and key.
    """
    file = open_weights(stated.path)
    found: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in file.tensors:
        match = next((match for pattern in _KEYS if (match := pattern.fullmatch(key))), None)
        if match is None:
            unknown.append(key)
            continue
        groups = match.groupdict()
        layer = f".{groups['layer']}" if groups.get("layer") else ""
        stem, role = str(groups["stem"]).replace(".processor", "") + layer, str(groups["role"])
        role = _ROLES.get(role, role)
        if role in found.setdefault(stem, {}):
            raise CheckpointError(f"{file.path}: {key} and {found[stem][role]} are the same matrix: remove one of them")
        found[stem][role] = key
    _require_known(file, unknown, bool(found))
    for stem, roles in found.items():
        if missing := [role for role in ("down", "up") if role not in roles]:
            raise CheckpointError(f"{file.path}: {stem} has no matrix {missing[0]!r}: the file is cut, fetch it again")
    pairs = {stem: Pair(roles["down"], roles["up"], roles.get("alpha")) for stem, roles in found.items()}
    for module, pair in pairs.items():
        _require_shapes(file, module, pair)
    settings, config = _settings(file, pairs)
    return LoraFile(stated, file, pairs, settings, config)


def _require_known(file: WeightsFile, unknown: Sequence[str], others: bool) -> None:
    for key in unknown:
        kind = next((kind for kind, pattern in _TABLE["not read"].items() if re.fullmatch(pattern, key)), None)
        if kind is not None:
            raise CheckpointError(
                f"{file.path}: {key} is of {kind}, which is not read: merge it into a checkpoint first"
            )
    if others and unknown:
        raise CheckpointError(f"{file.path}: {unknown[0]} is no matrix of a LoRA")
    if not others:
        kind = kind_of((*file.tensors, *file.beside))
        raise CheckpointError(
            f"{file.path} is {kind or 'no LoRA'}; expected a LoRA, such as lora_unet_….lora_up.weight"
        )


def _require_shapes(file: WeightsFile, module: str, pair: Pair) -> None:
    down, up = file.tensors[pair.down], file.tensors[pair.up]
    flat = up.shape[:2] + tuple(side for side in up.shape[2:] if side != 1)
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not down.numel or flat[1:] != down.shape[:1]:
        raise CheckpointError(
            f"{file.path}: {module} has matrices of shapes {down.shape} and {up.shape}, of no one rank"
        )
    for key, header in ((pair.down, down), (pair.up, up)):
        if not header.real:
            raise CheckpointError(f"{file.path}: {key} is not floating point")
    if pair.alpha is not None and file.tensors[pair.alpha].numel != 1:
        raise CheckpointError(
            f"{file.path}: {pair.alpha} must be one number; its shape is {file.tensors[pair.alpha].shape}"
        )


def _settings(file: WeightsFile, pairs: Mapping[str, Pair]) -> tuple[dict[str, Any], Path | None]:
    """What peft says of a LoRA, in the metadata or in a file beside it, and that file."""
    beside = file.path.with_name(_BESIDE)
    path: Path | None = None
    where, text = f"{file.path}: {_METADATA}", file.metadata.get(_METADATA)
    if text is None and any(module.startswith(_PEFT) for module in pairs):
        if not beside.is_file():
            raise CheckpointError(
                f"{file.path} is peft's, whose {_BESIDE} has its alpha, and is not beside it: put it there"
            )
        path, where, text = beside, str(beside), beside.read_text(encoding="utf-8-sig", errors="replace")
    if text is None:
        return {}, None
    try:
        settings = json.loads(text)
        _require_settings(settings, where)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} does not hold the settings of a LoRA ({error}): fetch it again") from None
    return settings, path


def _require_settings(settings: dict[str, Any], where: str) -> None:
    for name, value in settings.items():
        last = name.rsplit(".", 1)[-1]
        if last in ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora") and value:
            raise CheckpointError(f"{where}: {name} is {shown(value)}, which is not read: merge the LoRA first")
        alphas = (value or {}).values() if last == "alpha_pattern" else [value] if last == "lora_alpha" else ()
        if any(type(alpha) not in (int, float) or not math.isfinite(alpha) for alpha in alphas):
            raise CheckpointError(f"{where}: {name} is {shown(value)}, expected finite numbers")
        for pattern in (value or {}) if last == "alpha_pattern" else ():
            re.compile(pattern)


def match_lora(lora: LoraFile, parts: Sequence[Part]) -> list[Addition]:
    """Match a LoRA's modules to the parameters of a model.

    Raises:
        CheckpointError: a module is not in the model, or has another shape there; names file and key.
    """
    names = _names(parts)
    shapes = {(part.key, name): shape for part in parts for name, shape in part.shapes.items()}
    texts = sum(part.key.startswith("text") for part in parts)
    _require_width(lora, next(part.config for part in parts if isinstance(part.config, UNetConfig)))
    additions: list[Addition] = []
    for module, pair in lora.pairs.items():
        down, up = lora.file.tensors[pair.down].shape, lora.file.tensors[pair.up].shape
        if module not in names:
            hint = ": it was made for SDXL" if texts == 1 and re.match(r"lora_te2_|text_encoder_2\.", module) else ""
            raise CheckpointError(f"{lora.file.path}: {pair.down} is of a module that this model does not have{hint}")
        part, parameter = names[module]
        shape = shapes[part, parameter]
        product = (up[0], *down[1:])
        if _without_ones(product) != _without_ones(shape):
            raise CheckpointError(
                f"{lora.file.path}: {pair.down} changes a matrix of shape {product}, and this model's is {shape}: "
                "it was made for another model"
            )
        additions.append(Addition(part, parameter, module, pair))
    return additions


_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}


def width_of(lora: LoraFile) -> int | None:
    """Return the features of a text's token that a LoRA's cross-attention takes; None if it changes none of it."""
    return None if (down := _from_text(lora)) is None else lora.file.tensors[down].shape[1]


def _from_text(lora: LoraFile) -> str | None:
    """The key of a matrix that takes texts, if there is one."""
    pairs = lora.pairs.items()
    return next((pair.down for module, pair in pairs if re.search(r"attn2[._]to_[kv]$", module)), None)


def _require_width(lora: LoraFile, unet: UNetConfig) -> None:
    if (width := width_of(lora)) not in (None, unet.context):
        raise CheckpointError(
            f"{lora.file.path}: {_from_text(lora)} takes texts of {width} features, and this model has {unet.context}: "
            f"it was made for {_WIDTHS.get(width or 0, 'another model')}"
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _names(parts: Sequence[Part]) -> dict[str, tuple[str, str]]:
    """The network and parameter of every name of a module that a LoRA's file may have."""
    names: dict[str, tuple[str, str]] = {}
    for part in parts:
        for prefix in _TABLE["prefixes"].get(part.key, ()):
            for row in part.rows:
                for name in _spellings(row, part.key):
                    full = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
                    names.setdefault(full, (part.key, f"{row.ours}.weight"))
    return names


def _spellings(row: Row, part: str) -> Iterator[str]:
    """The names of a module without a prefix: CompVis' of a UNet, diffusers', and what trainers make of these."""
    columns = (row.compvis, row.diffusers) if part == "unet" else (row.diffusers.removeprefix("/"),)
    for name in (name for column in columns for name in column.split("|")):
        every = [
            name,
            *(re.sub(old, new, name) for old, new in _TABLE["other names"].items() if re.fullmatch(old, name)),
        ]
        yield from every
        if part != "unet":
            yield from (f"text_model.{one}" for one in every)


def added(
    loras: Sequence[tuple[LoraFile, Sequence[Addition]]], networks: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Return the weights of networks with LoRAs added, one after another in float32 and rounded once, by network.

    Args:
        loras: with the parameters that they are added to.
        networks: by their parts' keys. They stay as they are.

    Raises:
        CheckpointError: a matrix is not finite; names file and key.
    """
    from sld.checkpoints.fetching import finite_tensors

    before = {part: network.state_dict() for part, network in networks.items()}
    sums: dict[tuple[str, str], Tensor] = {}
    for lora, additions in loras:
        read: dict[str, Tensor] = dict(finite_tensors(lora.file, lora.file.tensors))
        for part, parameter, module, pair in additions:
            weight = before[part][parameter]
            down, up = (read[key].float().flatten(1) for key in (pair.down, pair.up))
            alpha = None if pair.alpha is None else float(read[pair.alpha])
            product = (up @ down) * lora.factor(module, len(down), alpha)
            base = sums[part, parameter] if (part, parameter) in sums else weight.float()
            sums[part, parameter] = base + product.reshape(weight.shape).to(base.device)
    changed: dict[str, dict[str, Tensor]] = {}
    for (part, parameter), weight in sums.items():
        changed.setdefault(part, {})[parameter] = weight.to(before[part][parameter].dtype)
    return changed
