"""Autocast on the pretend accelerator, which torch leaves to each device's own code."""

import torch

from tests.pretend.tensor import Pretend, overload

# As torch's autocast has them on CUDA: what is done in the short type, in fp32, and with results in fp32.
SHORT = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm")
WHOLE = ("exp", "kl_div", "l1_loss", "layer_norm", "log", "logsumexp", "mse_loss", "nll_loss", "nll_loss2d")
WHOLE += ("pow.Tensor_Scalar", "pow.Tensor_Tensor", "reciprocal", "rsqrt")
RESULTS = ("cumsum", "linalg_vector_norm", "log_softmax.int", "prod", "softmax.int", "sum", "sum.dim_IntList")
ALL = SHORT + WHOLE + RESULTS


def eligible(value) -> bool:
    return isinstance(value, Pretend) and value.is_floating_point() and value.dtype != torch.float64


def casting(name: str):
    """An operation as autocast does it."""
    kernel, keys = overload(name), torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    places = [argument.name for argument in kernel._schema.arguments]

    def cast(value):
        return value.to(torch.float32 if name in WHOLE else torch.get_autocast_dtype("pretend"))

    def call(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if name not in RESULTS:
                args = [cast(value) if eligible(value) else value for value in args]
            elif eligible(args[0]) and {**dict(zip(places, args, strict=False)), **kwargs}.get("dtype") is None:
                args, kwargs = args[: places.index("dtype")], {**kwargs, "dtype": torch.float32}
            return kernel(*args, **kwargs)

    return call
