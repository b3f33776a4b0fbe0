"""scikit-learn estimators; everything public here is also `diffeo.<name>`."""

from diffeo.estimators.density import FlowDensity as FlowDensity
from diffeo.estimators.outlier import FlowOutlierDetector as FlowOutlierDetector
from diffeo.estimators.regressor import FlowRegressor as FlowRegressor
from diffeo.estimators.transformer import FlowTransformer as FlowTransformer
