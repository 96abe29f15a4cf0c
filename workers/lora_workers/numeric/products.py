"""Norm and largest singular value of B·A from two small matrices, never from the product itself.

With G_A = A·Aᵀ and G_B = Bᵀ·B, both [rank, rank]: ‖B·A‖_F² = Σ(G_A ∘ G_B), and with G_A = L·Lᵀ the squared singular
values of B·A are the eigenvalues of Lᵀ·G_B·L. The G are sums of float32 products, accumulated and decomposed in
float64.
"""

from __future__ import annotations

import torch

from lora_workers.numeric.measures import Size

_IN_RANGE = 2.0**40
"""Magnitudes whose square float32 holds with room to spare; 1 over it is the other end."""
LARGEST_MEASURED = 2.0**200
"""Fourth powers of larger values leave the range of float64. Only a tensor in F64 can hold one."""


def needs_double(largest: float) -> bool:
    """Whether squares of values of this magnitude leave the range of float32."""
    return largest > _IN_RANGE or 0 < largest < 1 / _IN_RANGE


def gram_of_a(values: torch.Tensor, experts: int) -> torch.Tensor:
    """G_A of `values`, some columns of A `[experts · rank, columns]`: `[rank, rank]`, or one for each expert."""
    if experts == 1:
        return torch.mm(values, values.T)
    return gram_of_many(values.unsqueeze(0), experts, of_a=True)[0]


def gram_of_b(values: torch.Tensor, experts: int) -> torch.Tensor:
    """G_B of `values`, some rows of B `[rows, rank · experts]`: `[rank, rank]`, or one for each expert."""
    if experts == 1:
        return torch.mm(values.T, values)
    return gram_of_many(values.unsqueeze(0), experts, of_a=False)[0]


def gram_of_many(values: torch.Tensor, experts: int, *, of_a: bool) -> torch.Tensor:
    """The matrices of many halves of one shape: `[halves, experts, rank, rank]`, float64.

    Args:
        values: `[halves, experts · rank, in_features]` of A, `[halves, out_features, rank · experts]` of B.
        experts: products side by side.
        of_a: whether they are halves A.
    """
    if of_a:
        each = values.view(values.shape[0], experts, -1, values.shape[2])
    else:
        each = values.view(*values.shape[:2], -1, experts).permute(0, 3, 2, 1)
    return torch.matmul(each, each.mT).double()


def sizes_of(gram_a: torch.Tensor, gram_b: torch.Tensor) -> list[Size]:
    """The sizes of many products.

    Args:
        gram_a: `[products, experts, rank, rank]`, float64, finite.
        gram_b: likewise.

    Returns:
        One for each product: the norm of all its experts together, the largest singular value of any.
    """
    squares = (gram_a * gram_b).sum(dim=(-2, -1)).clamp_min(0).sum(dim=-1)
    root, failed = torch.linalg.cholesky_ex(gram_a)
    if bool(failed.any()):
        root = torch.where((failed > 0)[..., None, None], _root_of_singular(gram_a), root)
    largest = torch.linalg.eigvalsh(root.mT @ gram_b @ root)[..., -1].clamp_min(0).amax(dim=-1)
    return [
        Size(frobenius, sigma_1)
        for frobenius, sigma_1 in zip(squares.sqrt().tolist(), largest.sqrt().tolist(), strict=True)
    ]


def _root_of_singular(gram: torch.Tensor) -> torch.Tensor:
    """A root `L` with L·Lᵀ = gram of matrices that are only semi-definite, as those of dependent rows are."""
    values, vectors = torch.linalg.eigh(gram)
    root: torch.Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    return root
