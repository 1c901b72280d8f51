"""GRU, LSTM and RNN layers that take the place of torch.nn's and run the whole time loop as one kernel.

layer = fusedrnn.GRU(128, 256)              # nn.GRU's arguments, state_dict and outputs
model = fusedrnn.convert(model)             # every recurrent layer of a model, in place; revert undoes it
print(fusedrnn.explain(layer, x))           # which kernel runs, and why every other one does not
"""

import sys
from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        f"fusedrnn needs torch, which this Python has not; run `{sys.executable} -m pip install torch`", name="torch"
    )

from . import functional
from .backends import use_backend
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, revert
from .explanation import explain
from .frozen import frozen
from .modules import GRU, LSTM, RNN

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "convert",
    "explain",
    "frozen",
    "functional",
    "revert",
    "use_backend",
]
