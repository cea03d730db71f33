"""A linear layer that is quick for a few vectors, too, as when reading token by token."""

import torch
from torch import Tensor, nn

# For one vector, and for more than so many, the product is about as quick one way as the other (float32).
FEW = 32


class Linear(nn.Linear):
    """``nn.Linear``, but for a few vectors in the rows of x a CPU computes (W x^T)^T instead of x W^T, which takes it longer."""

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        count = vectors.numel() // self.in_features
        if vectors.device.type != "cpu" or not 1 < count <= FEW:
            return super().forward(vectors)
        columns = vectors.reshape(count, self.in_features).t()  # [D, N]
        if self.bias is None:
            product = torch.mm(self.weight, columns)
        else:
            product = torch.addmm(self.bias.unsqueeze(1), self.weight, columns)  # [D', N]
        # The heads of a vector lie side by side, as after any other.
        return product.t().contiguous().view(*vectors.shape[:-1], self.out_features)
