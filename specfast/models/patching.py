"""patch and unpatch: our operators within a model built from the code that Ji et al. 2026 publish.

That code keeps the factors of every sample and band, and [B, N, C, E] and [B, L, C, P] of what they are applied to. The
two modules that do so, HyperEmbedding (``patch_embed``) and HyperLinear (``decoder_pred``), are recognized by the names
and shapes of their parameters and by what they compute, and replaced by modules that hold the very same submodules and
parameters and leave out what need not be stored. Everything else of the model stays as it is.

Legend: B samples, C bands, H x W pixels, N patches, L tokens with cls, P pixels a patch, R rank, E and D widths,
w condition width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from specfast import ops
from specfast.models.condition import hidden_and_last
from specfast.models.config import SpecAwareConfig
from specfast.models.decoder import HyperLinearHead
from specfast.models.embedding import HyperEmbedding
from specfast.models.modes import evaluating

_FACTORS = ("u_generator", "v_generator", "bias_generator")
# relative RMS that rounding explains; what another computation gives differs in the first digits
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_TOLERANCE_16_BIT = 3e-2


def patch(model: nn.Module) -> nn.Module:
    """Replace the embedding and the prediction head of a published SpecAware model by ours, in place.

    Parameters are shared, not copied: they keep their names and identity, so that an optimizer made before goes on, and
    a state dict fits with and without the patch. Outputs and gradients agree up to rounding, in training mode with the
    same dropout. Other patch grids than the one trained on are pooled adaptively, where the published code stops.

    Before a module is replaced, both forms are compared on a small random image (sensor ``"others"``, level ``"L1"``).

    Args:
        model: any module that holds, at any depth, modules of the published code (also the segmentation example's).

    Returns:
        ``model``; or, if ``model`` is itself one of the modules to be replaced, ours.

    Raises:
        ValueError: nothing in the model looks like a published module, or one does but does not match: every reason is
            listed, and the model is left as it was.
    """
    found = {name: module for name, module in model.named_modules() if _looks_published(module)}
    patched = any(isinstance(module, _Replacement) for module in model.modules())
    if not found and not patched:
        raise ValueError(
            f"patch: {type(model).__name__} holds no module of the published code: none that is not specfast's has a "
            f"matrix_generator with {', '.join(_FACTORS)}"
        )
    replacements, problems = {}, []
    for name, module in found.items():
        try:
            replacements[name] = _replacement(module)
        except ValueError as error:
            problems.append(f"{name or type(module).__name__}: {error}")
    if problems:
        raise ValueError("patch: nothing was replaced; " + "; ".join(problems))
    for name, replacement in replacements.items():
        model = _put(model, name, replacement)
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Undo :func:`patch` in place: the published modules again, with the parameters as they now are.

    Returns:
        ``model``; or, if ``model`` is itself one of ours that replaced a published module, that one.

    Raises:
        ValueError: no module of the model is one that :func:`patch` put there.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, _Replacement)}
    if not found:
        raise ValueError(f"unpatch: no module of {type(model).__name__} was replaced by specfast.patch")
    for name, module in found.items():
        published = module.published[0]
        published.training = module.training
        model = _put(model, name, published)
    return model


class _Replacement(nn.Module):
    """A module that stands where ``published`` stood, with its state."""

    def __init__(self, published: nn.Module):
        super().__init__()
        # The same dictionaries of parameters, submodules and hooks, not copies: what is moved, loaded or exchanged in
        # one is so in the other.
        self.__dict__.update(published.__dict__)
        self.published = (published,)  # in a tuple, which nn.Module does not take for a submodule

    def extra_repr(self) -> str:
        return f"in the place of {type(self.published[0]).__name__}"


class PatchedEmbedding(_Replacement):
    """HyperEmbedding of the published code through :mod:`specfast.ops`."""

    def forward(self, x: Tensor, wavelengths, fwhm: Tensor, sensor_name, data_level) -> tuple[Tensor, Tensor]:
        """Embed all patches; arguments as the published module takes them.

        Args:
            x: [B, C, H, W].
            wavelengths: [B, C] nm, a tensor or a NumPy array.
            fwhm: [B, C] nm.
            sensor_name, data_level: keys of the published sentences, such as ``"av3"`` and ``"L2"``.

        Returns:
            tokens [B, N, E], and what the metadata say of each band, [B, C, w].
        """
        if not isinstance(wavelengths, Tensor):
            wavelengths = torch.as_tensor(wavelengths, dtype=torch.float32)
        meta = self.spectral_embedding(wavelengths, fwhm, sensor_name, data_level)
        meta = self.spectral_aware_transformer(meta)

        generators, content = self.matrix_generator, self.content_feature_extractor
        rank, columns = _rank_and_columns(generators)
        patch_size = math.isqrt(columns)
        grid = math.isqrt(content.avg_feature_encoder[0].in_features)
        samples, bands, height, width = x.shape
        offsets = band_offsets(samples, bands, x.device)
        count = (height // patch_size) * (width // patch_size)
        everything = torch.arange(count, device=x.device).expand(samples, -1)
        patches, average, maximum = ops.patch_pool(x.flatten(0, 1), everything, offsets, patch_size, grid=(grid, grid))
        encoded = [
            content.avg_feature_encoder(average.unflatten(0, (samples, bands))),
            content.max_feature_encoder(maximum.unflatten(0, (samples, bands))),
        ]
        described = content.layer_norm(content.feature_fusion(torch.cat(encoded, dim=-1)))
        condition = self.feature_fusion(meta, described) + meta

        hidden, weight, bias = hidden_and_last(generators.u_generator, condition)
        tokens = ops.hyper_embed(
            patches,
            generators.v_generator(condition).flatten(0, 1).unflatten(-1, (rank, -1)),
            hidden.flatten(0, 1),
            weight.unflatten(0, (-1, rank)),
            bias.unflatten(0, (-1, rank)),
            offsets,
        )
        sample_bias = generators.bias_generator(condition.mean(dim=1))
        return self.scaler * (tokens + sample_bias[:, None]), meta


class PatchedHead(_Replacement):
    """HyperLinear of the published code through :mod:`specfast.ops`."""

    def forward(self, x: Tensor, wavelengths_embedding: Tensor) -> Tensor:
        """Predict the pixels of all tokens.

        Args:
            x: [B, L, D] decoded tokens.
            wavelengths_embedding: [B, C, w], what the metadata say of each band.

        Returns:
            [B, L, P * C], index = pixel * C + band.
        """
        samples, bands = wavelengths_embedding.shape[:2]
        attended = self.x_attention_pool(x.mean(dim=1, keepdim=True), x, x)[0]
        content = self.x_feature_extractor(attended).expand(-1, bands, -1)
        condition = self.feature_fusion(wavelengths_embedding, content) + content
        generators = self.matrix_generator
        rank, _ = _rank_and_columns(generators)
        # U before V, as the published code draws their dropout
        factors_u = generators.u_generator(condition).flatten(0, 1).unflatten(-1, (-1, rank))
        hidden, weight, bias = hidden_and_last(generators.v_generator, condition)
        prediction = ops.hyper_linear(
            x,
            hidden.flatten(0, 1),
            weight.unflatten(0, (rank, -1)),
            bias.unflatten(0, (rank, -1)),
            factors_u,
            generators.bias_generator(condition).flatten(0, 1),
            band_offsets(samples, bands, x.device),
        )
        return prediction.unflatten(0, (samples, bands)).permute(0, 2, 3, 1).flatten(2)


def band_offsets(samples: int, bands: int, device: torch.device) -> Tensor:
    """Offsets of equal band counts: int32 [B + 1]."""
    return torch.arange(0, samples * bands + 1, bands, dtype=torch.int32, device=device)


def _rank_and_columns(generators: nn.Module) -> tuple[int, int]:
    """Read R and V's columns off the shapes: U is [rows, R], V [R, columns], and the bias [rows]."""
    rank = generators.u_generator[-1].out_features // generators.bias_generator[-1].out_features
    return rank, generators.v_generator[-1].out_features // rank


def _looks_published(module: nn.Module) -> bool:
    if isinstance(module, (_Replacement, HyperEmbedding, HyperLinearHead)):
        return False
    generators = getattr(module, "matrix_generator", None)
    return isinstance(generators, nn.Module) and all(hasattr(generators, name) for name in _FACTORS)


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module where ``name`` points to; the empty name is the model itself."""
    if not name:
        return module
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
    return model


def _replacement(module: nn.Module) -> _Replacement:
    """Make what replaces a published module; ValueError with every reason why it does not match."""
    if "forward" in vars(module):
        raise ValueError("its forward was exchanged on the instance, by another patch")
    is_head = hasattr(module, "x_attention_pool")
    expected = _expected(module, is_head)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in shapes]
    problems += [f"unexpected {name} {list(shape)}" for name, shape in shapes.items() if name not in expected]
    problems += [
        f"misshapen {name} {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        raise ValueError("; ".join(problems))
    ours = (PatchedHead if is_head else PatchedEmbedding)(module)
    parameter = next(module.parameters())
    if parameter.device.type != "meta":  # without numbers there is nothing to compare
        _compare(module, ours, parameter, is_head)
    return ours


def _expected(module: nn.Module, is_head: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module of ours with the sizes that the module's factors have."""
    try:
        generators = module.matrix_generator
        rank, columns = _rank_and_columns(generators)
        rows = generators.bias_generator[-1].out_features
        sizes = {"condition_dim": generators.u_generator[0].normalized_shape[0], "rank": rank}
        if is_head:
            sizes |= {"patch_size": math.isqrt(rows), "decoder_embed_dim": columns, "content_grid": 1}
        else:
            windows = module.content_feature_extractor.avg_feature_encoder[0].in_features
            sizes |= {"patch_size": math.isqrt(columns), "embed_dim": rows, "content_grid": math.isqrt(windows)}
        config = SpecAwareConfig(**sizes, num_heads=1, decoder_num_heads=1)
    except (AttributeError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"its sizes cannot be read off its generators ({error})") from None
    with torch.device("meta"):
        ours = (HyperLinearHead if is_head else HyperEmbedding)(config)
    return {name: tuple(value.shape) for name, value in ours.state_dict().items()}


def _compare(published: nn.Module, ours: _Replacement, parameter: Tensor, is_head: bool) -> None:
    """Raise ValueError unless both compute the same of a random input."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator).to(parameter)

    if is_head:
        width = ours.x_feature_extractor[0].in_features
        inputs = (draw(1, 5, width), draw(1, 3, ours.feature_fusion.modal1_proj.in_features))
    else:
        windows = ours.content_feature_extractor.avg_feature_encoder[0].in_features
        side = math.isqrt(windows) * math.isqrt(_rank_and_columns(ours.matrix_generator)[1])
        wavelength = torch.tensor([[450.0, 1200.0, 2300.0]], device=parameter.device)
        inputs = (draw(1, 3, side, side), wavelength, torch.full_like(wavelength, 8.0).to(parameter), "others", "L1")
    with torch.no_grad(), evaluating(published), evaluating(ours):
        try:
            expected = published.forward(*inputs)  # not the module itself, whose hooks need not see this
        except Exception as error:  # of code that is not ours: whatever it raises, it is not what we know
            raise ValueError(f"calling it as the published module is called failed ({error})") from error
        actual = ours.forward(*inputs)
    if is_head:
        expected, actual = [expected], [actual]
    if [_shape(value) for value in expected] != [_shape(value) for value in actual]:
        raise ValueError(f"it returns {', '.join(map(_shape, expected))}; expected {', '.join(map(_shape, actual))}")
    for one, other in zip(expected, actual, strict=True):
        error = float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-300))
        if not error <= _TOLERANCE.get(parameter.dtype, _TOLERANCE_16_BIT):
            raise ValueError(
                f"names and shapes match, but it computes something else (relative difference {error:.1e} on a "
                "random input)"
            )


def _shape(value) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
