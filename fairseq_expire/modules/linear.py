"""A linear layer that is fast for few vectors as well, as in token-by-token reading."""

import torch
from torch import Tensor, nn

# For one vector, and for more than this many, both products below take about the same time (float32).
FEW = 32


class Linear(nn.Linear):
    """``nn.Linear`` that computes (W x^T)^T rather than x W^T for few vectors x on a CPU, which is faster there."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Maps vectors [..., D] to [..., D']."""
        count = vectors.numel() // self.in_features
        if vectors.device.type != "cpu" or not 1 < count <= FEW:
            return super().forward(vectors)
        columns = vectors.reshape(count, self.in_features).t()  # [D, N]
        if self.bias is None:
            product = torch.mm(self.weight, columns)
        else:
            product = torch.addmm(self.bias.unsqueeze(1), self.weight, columns)  # [D', N]
        # Contiguous, like the output of nn.Linear: attention splits vectors into heads.
        return product.t().contiguous().view(*vectors.shape[:-1], self.out_features)
