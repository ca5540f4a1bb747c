"""Which units count least for what their reader puts out, and a least-squares refit of the reader once they are gone.

With G = X^T X over calibration inputs X of the reader W: a unit that goes alone costs ||X_u W_u^T||^2 (for one channel
E[x^2] |w|^2, as in the independent channel contribution of Minitron, 2407.14679). The columns K that stay then take over
what they can of those that go, R: W_K + W_R G_RK (G_KK + damping)^-1 is nearest in output to what the layer gave before.
"""

# O out, I in, U units, W width of a unit, K inputs that stay, R inputs that go

from __future__ import annotations

import torch

DAMPING = 0.01  # of the mean of the gram's diagonal


def contributions(weight_OI: torch.Tensor, gram_II: torch.Tensor, inputs_UW: torch.Tensor) -> torch.Tensor:
    """Return of each unit the squared norm of what the layer puts out for it, summed over the tokens: (units,)."""
    weight_OUW = weight_OI.double()[:, inputs_UW]
    gram_UWV = gram_II[inputs_UW[:, :, None], inputs_UW[:, None, :]]
    return torch.einsum("ouw,uwv,ouv->u", weight_OUW, gram_UWV, weight_OUW)


def refitted(weight_OI: torch.Tensor, gram_II: torch.Tensor, kept_K: torch.Tensor) -> torch.Tensor:
    """Return the columns that stay, (out, kept) in float64, fitted so that the others are missed least."""
    weight_OI = weight_OI.double()
    gone = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    gone[kept_K] = False
    gone_R = gone.nonzero().flatten()
    gram_KK = gram_II[kept_K][:, kept_K]
    gram_KK.diagonal().add_(DAMPING * gram_II.diagonal().mean())
    missed_OK = weight_OI[:, gone_R] @ gram_II[gone_R][:, kept_K]
    factor_KK, failed = torch.linalg.cholesky_ex(gram_KK)
    if int(failed):  # inputs that never vary, or are zero: nothing can be taken over
        return weight_OI[:, kept_K]
    return weight_OI[:, kept_K] + torch.cholesky_solve(missed_OK.T, factor_KK).T
