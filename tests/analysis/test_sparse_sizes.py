"""Files of networks with zeros: what they hold is the network, and their length is what is told."""

import gzip
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from harness.analysis.sparse_sizes import coo, csr, sizes, sparse_state
from harness.checkpoint import state_of
from harness.engine.sparsity import make_zero, zeroed


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 40))
    make_zero(model, zeroed(model, {"3": 0.9}))
    return model


@pytest.mark.rows("R098")
def test_a_sparse_file_holds_the_very_weights() -> None:
    state = state_of(net())
    weights = {"0.weight", "3.weight"}
    as_csr = load(save(sparse_state(state, weights, csr)))
    assert "3.weight" not in as_csr
    matrix = torch.zeros(40, 64)
    starts = as_csr["3.weight/row_starts"].tolist()
    for row, (start, end) in enumerate(pairwise(starts)):
        matrix[row, as_csr["3.weight/columns"][start:end].long()] = (
            as_csr["3.weight/values"][start:end])
    assert torch.equal(matrix, state["3.weight"])
    as_coo = load(save(sparse_state(state, weights, coo)))
    places = torch.stack([as_coo["3.weight/rows"], as_coo["3.weight/columns"]]).long()
    again = torch.sparse_coo_tensor(places, as_coo["3.weight/values"], (40, 64),
                                    check_invariants=True)
    assert torch.equal(again.to_dense(), state["3.weight"])
    # Without zeros it would be longer sparse, and stays dense; so does all that is no weight.
    assert torch.equal(as_csr["0.weight"], state["0.weight"])
    assert torch.equal(as_coo["1.running_var"], state["1.running_var"])


@pytest.mark.rows("R098")
def test_sizes_are_those_of_the_files() -> None:
    model = net()
    found = sizes(model)
    dense = save(state_of(model))
    assert found.dense == len(dense)
    assert gzip.decompress(gzip.compress(dense)) == dense
    assert found.gzip == len(gzip.compress(dense, 6))
    zeros = int((model[3].weight == 0).sum())
    left = model[3].weight.numel() - zeros
    saved = 4 * model[3].weight.numel() - (4 * left + 4 * left + 4 * 41)
    assert found.dense - found.csr == pytest.approx(saved, abs=300)  # the headers differ
    assert found.sparse_layers == 1
    assert found.as_mb()["dense"] == len(dense) / 1e6
    assert found.csr < found.coo < found.dense
