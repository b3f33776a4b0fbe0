"""Alignments of letters and frames, both in order, by dynamic programming over frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

IMPOSSIBLE = -1e30  # of a log-probability; an infinity would become NaN in differences


@torch.no_grad()
def monotonic_alignment(scores: Tensor, letters: Tensor, frames: Tensor) -> Tensor:
    """How many frames each letter gets in the alignment of the greatest total score, without gradient.

    The first frame belongs to the first letter, the last to the last, and each frame to the letter of the frame before
    or to the next one: every letter gets at least one frame. Dynamic programming over frames, all rows at once.

    Args:
        scores: (n, L, T), of frame t at letter l.
        letters, frames: (n,), how many of L and T are real; the rest is padding.

    Returns:
        (n, L) whole numbers that add up to `frames`; 0 for padding.

    Raises:
        ValueError: a row without letters, or with more letters than frames.

    Cost: O(L · T) for each row, T steps for the batch, and as many back.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129

    >>> import torch
    >>> scores = torch.tensor([[[0.0, 0.0, -9.0, -9.0], [-9.0, -9.0, 0.0, 0.0]]])
    >>> monotonic_alignment(scores, torch.tensor([2]), torch.tensor([4]))
    tensor([[2, 2]])
    """
    n, most, steps = scores.shape
    check_letters(letters, frames, "monotonic_alignment")
    best = scores.new_full((n, most), -torch.inf)
    best[:, 0] = scores[:, 0, 0]
    nothing = scores.new_full((n, 1), -torch.inf)
    advanced: list[Tensor] = [torch.zeros(n, most, dtype=torch.bool, device=scores.device)]
    for t in range(1, steps):
        before = torch.cat([nothing, best[:, :-1]], 1)
        advanced.append(before > best)
        best = torch.maximum(before, best) + scores[:, :, t]
    row, at = torch.arange(n, device=scores.device), letters - 1
    found = scores.new_zeros(n, most, dtype=torch.long)
    for t in range(steps - 1, -1, -1):
        here = (t < frames).long()
        found[row, at] += here
        at = at - (advanced[t][row, at] & here.bool()).long()
    return found


def alignment_posteriors(scores: Tensor, letters: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The chance that frame t belongs to letter l, over all monotonic alignments, and the log of their total.

    An alignment has the weight exp Σ_t score(l(t), t); the alignments are those of `monotonic_alignment`. The chances
    are the gradient of the total by the scores: the forward and backward algorithms of hidden Markov models.

    Args:
        scores: (n, L, T), of frame t at letter l.
        letters, frames: (n,), how many of L and T are real; the rest is padding.

    Returns:
        (n, L, T), which add up to one over letters in each real frame and are 0 in padding; and (n,). Without gradient.

    Raises:
        ValueError: a row without letters, or with more letters than frames.

    Cost: O(L · T) for each row, T steps for the batch, and as many back.

    "A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition" (Rabiner, 1989),
    https://doi.org/10.1109/5.18626

    >>> import torch
    >>> chances, total = alignment_posteriors(torch.zeros(1, 2, 3), torch.tensor([2]), torch.tensor([3]))
    >>> chances[0]  # the middle frame may belong to either
    tensor([[1.0000, 0.5000, 0.0000],
            [0.0000, 0.5000, 1.0000]])
    """
    check_letters(letters, frames, "alignment_posteriors")
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        total = _alignment_total(leaf, letters, frames)
        chances = torch.autograd.grad(total.sum(), leaf)[0]
    return chances, total.detach()


def _alignment_total(scores: Tensor, letters: Tensor, frames: Tensor) -> Tensor:
    """The log of the total weight of all monotonic alignments, (n,), with gradient; see `alignment_posteriors`."""
    best = torch.full_like(scores[:, :, 0], IMPOSSIBLE)
    best = torch.cat([scores[:, :1, 0], best[:, 1:]], 1)
    nothing = torch.full_like(scores[:, :1, 0], IMPOSSIBLE)
    last = (letters - 1).unsqueeze(1)
    ends = [best.gather(1, last)]
    for score in scores.unbind(2)[1:]:
        best = torch.logaddexp(best, torch.cat([nothing, best[:, :-1]], 1)) + score
        ends.append(best.gather(1, last))
    return torch.cat(ends, 1).gather(1, (frames - 1).unsqueeze(1)).squeeze(1)


def ctc_alignment_loss(attention: Tensor, letters: Tensor, frames: Tensor, blank: float = -1.0) -> Tensor:
    """−log of the chance that a text is heard letter by letter, for each letter: what attention misses.

    A frame hears letter l with a chance in proportion to exp a(t, l), or none in proportion to exp `blank`; the text is
    heard if its letters come in order, each in one frame or several, with or without none in between. So attention has
    to reach every letter at some time, but need not be in the right place at every frame: as a mean over all alignments
    of every frame, the loss would be met by attention that dwells on one letter.

    Args:
        attention: (n, T, L), the logarithm of attention at letter l in frame t.
        letters, frames: (n,), how many of L and T are real; the rest is padding.
        blank: the score of hearing none, beside those of letters.

    Returns:
        (n,), in nats a letter.

    Raises:
        ValueError: a row without letters, or with more letters than frames.

    Cost: O(L · T) for each row; it has no second derivatives.

    "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent Neural Networks" (Graves
    et al., 2006), https://doi.org/10.1145/1143844.1143891; "One TTS Alignment To Rule Them All" (Badlani et al., 2021),
    https://arxiv.org/abs/2108.10447

    >>> import torch
    >>> right = torch.tensor([[[0.0, -9.0], [0.0, -9.0], [-9.0, 0.0]]])
    >>> miss = ctc_alignment_loss(right, torch.tensor([2]), torch.tensor([3]))
    >>> bool(miss < ctc_alignment_loss(right.flip(1), torch.tensor([2]), torch.tensor([3])))
    True
    """
    check_letters(letters, frames, "ctc_alignment_loss")
    n, _, most = attention.shape
    possible = attention.clamp_min(IMPOSSIBLE)  # an infinity has no gradient
    scores = F.pad(possible, (1, 0), value=blank).log_softmax(-1).transpose(0, 1)
    each = torch.arange(1, most + 1, device=attention.device).expand(n, most)
    return F.ctc_loss(scores, each, frames, letters, reduction="none") / letters


def guided_alignment_loss(attention: Tensor, letters: Tensor, frames: Tensor, width: float = 0.2) -> Tensor:
    """How much attention lies off the diagonal: the mean over frames of Σ_l a(t, l) (1 − exp(−d² / (2 width²))).

    d = (l + ½) / L − (t + ½) / T, for letter l of L and frame t of T. It draws attention to the diagonal before it has
    learned anything; `ctc_alignment_loss` asks for the order of letters alone.

    Args:
        attention: (n, T, L), the logarithm of attention at letter l in frame t.
        letters, frames: (n,), how many of L and T are real; the rest is padding.
        width: how far from the diagonal, as a share of the text, costs little; > 0.

    Returns:
        (n,), in [0, 1].

    Raises:
        ValueError: a row without letters, or with more letters than frames; a width that is not positive.

    Cost: O(L · T) for each row.

    "Efficiently Trainable Text-to-Speech System Based on Deep Convolutional Networks with Guided Attention" (Tachibana
    et al., 2017), https://arxiv.org/abs/1710.08969

    >>> import torch
    >>> right = torch.tensor([[[0.0, -9.0], [0.0, -9.0], [-9.0, 0.0]]])
    >>> miss = guided_alignment_loss(right, torch.tensor([2]), torch.tensor([3]))
    >>> bool(miss < guided_alignment_loss(right.flip(1), torch.tensor([2]), torch.tensor([3])))
    True
    """
    check_letters(letters, frames, "guided_alignment_loss")
    if not width > 0:
        raise ValueError(f"guided_alignment_loss: expected width > 0, got {width}")
    _, most_frames, most = attention.shape
    t, letter = (torch.arange(n, device=attention.device) for n in (most_frames, most))
    at, of = (t + 0.5) / frames[:, None], (letter + 0.5) / letters[:, None]  # (n, T) and (n, L)
    far = 1 - (-(of[:, None] - at[:, :, None]).square() / (2 * width**2)).exp()
    real = (t < frames[:, None])[:, :, None] & (letter < letters[:, None])[:, None]
    shares = torch.where(real, attention, -torch.inf).exp()
    return (shares * far).sum((1, 2)) / frames


def letters_of(durations: Tensor, frames: int) -> Tensor:
    """The letter of each of so many frames, (*batch, frames), from the durations of letters; the last one goes on."""
    ends = durations.cumsum(-1)
    ended = torch.arange(frames, device=ends.device) >= ends.unsqueeze(-1)
    return ended.sum(-2).clamp_max(durations.shape[-1] - 1)


def check_letters(letters: Tensor, frames: Tensor, who: str) -> None:
    """Every row has letters, and a frame for each.

    Raises:
        ValueError: one has none, or more than frames.
    """
    wrong = (letters > frames) | (letters < 1)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"{who}: row {i} has {int(letters[i])} letters and {int(frames[i])} frames; every letter needs a frame of "
            "its own (is the text that of the clip, or the clip too short?)"
        )
