"""The two losses of ours: softmax over a query's own group, and over a batch of similar queries."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn


class GroupSoftmaxLoss(nn.Module):
    """Cross-entropy of the right passage within its group, mixed with a teacher's opinion of the group.

    The first part is the localized contrastive estimation of Gao et al. (ECIR 2021), the second the
    Kullback-Leibler divergence from the teacher's distribution over the group to the model's.

    Args:
        model: with one output and an identity activation.
        distillation: weight of the teacher, from 0 to 1.
    """

    def __init__(self, model: CrossEncoder, distillation: float) -> None:
        super().__init__()
        self.model = model
        self.distillation = distillation

    def forward(
        self,
        inputs: list[list[str] | list[list[str]]],
        labels: list[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Mean loss of a batch.

        Args:
            inputs: the queries, and for each query its passages with the right one first; all groups have
                the same size.
            labels: the teacher's logit of each passage, per query.
            prompt: passed to the model's tokenisation.
            task: passed to the model's tokenisation.
        """
        queries, groups = inputs
        pairs = [(query, passage) for query, passages in zip(queries, groups, strict=True) for passage in passages]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        logits = self.model(features)["scores"].float().view(len(groups), -1)
        teacher = torch.stack(list(labels)).to(logits.device, torch.float32)
        own = F.cross_entropy(logits, torch.zeros(len(groups), dtype=torch.long, device=logits.device))
        taught = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
        return (1 - self.distillation) * own + self.distillation * taught


class InBatchSoftmaxLoss(nn.Module):
    """Cross-entropy of the right passage among all of the batch and of the right query, on scaled cosines.

    Rows with the same label share a right passage, or nearly do, and are not negatives of each other: in a
    batch of similar queries the plain in-batch loss would push right answers away.

    Args:
        model: a bi-encoder.
        scale: factor of the cosines, the inverse of the temperature.
    """

    def __init__(self, model: SentenceTransformer, scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Mean of both directions.

        Args:
            sentence_features: tokenised queries and tokenised passages, row by row a right pair.
            labels: group of each row; shape (batch,).
        """
        queries, passages = (
            F.normalize(self.model(features)["sentence_embedding"].float(), dim=-1) for features in sentence_features
        )
        return in_batch_softmax(queries, passages, labels, self.scale)


def in_batch_softmax(queries: Tensor, passages: Tensor, groups: Tensor, scale: float) -> Tensor:
    """Cross-entropy of the right passage among all of the batch and of the right query, averaged.

    Args:
        queries: normalised vectors; shape (batch, dimensions).
        passages: normalised vectors of the right passages, row by row; same shape.
        groups: shape (batch,); rows of one group are not negatives of each other.
        scale: factor of the cosines.
    """
    cosines = scale * queries @ passages.T
    same = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    cosines = cosines.masked_fill(same, float("-inf"))
    right = torch.arange(len(groups), device=groups.device)
    return (F.cross_entropy(cosines, right) + F.cross_entropy(cosines.T, right)) / 2
