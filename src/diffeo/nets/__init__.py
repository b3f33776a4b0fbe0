"""Plain networks for conditioners: `(x, context) -> params`, zero at the start."""

from diffeo.nets.beside import Beside as Beside
from diffeo.nets.beside import FrameMap as FrameMap
from diffeo.nets.conv import ConvNet as ConvNet
from diffeo.nets.conv import OneHot as OneHot
from diffeo.nets.encoder import PiecewiseLinear as PiecewiseLinear
from diffeo.nets.features import ImageFeatures as ImageFeatures
from diffeo.nets.features import LowResolution as LowResolution
from diffeo.nets.field import VectorField as VectorField
from diffeo.nets.frames import MelEncoder as MelEncoder
from diffeo.nets.lipschitz import LipschitzConvNet as LipschitzConvNet
from diffeo.nets.lipschitz import LipschitzMLP as LipschitzMLP
from diffeo.nets.made import MADE as MADE
from diffeo.nets.mlp import MLP as MLP
from diffeo.nets.mlp import PeriodicMLP as PeriodicMLP
from diffeo.nets.prosody import Prosody as Prosody
from diffeo.nets.recurrent import AttentiveLSTM as AttentiveLSTM
from diffeo.nets.recurrent import beta_binomial_prior as beta_binomial_prior
from diffeo.nets.scaler import ContextScaler as ContextScaler
from diffeo.nets.stepwise import CausalWaveNet as CausalWaveNet
from diffeo.nets.stepwise import RowWaveNet as RowWaveNet
from diffeo.nets.text import Letters as Letters
from diffeo.nets.text import PositionalAttention as PositionalAttention
from diffeo.nets.text import TextEncoder as TextEncoder
from diffeo.nets.transformer import CausalTransformer as CausalTransformer
from diffeo.nets.transformer import Guided as Guided
from diffeo.nets.wavenet import WaveNet as WaveNet
