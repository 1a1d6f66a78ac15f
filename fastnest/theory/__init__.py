"""The guarantees of arXiv 2111.05496 as tools that compute them for a model and data."""

from .assumptions import Assumptions, Condition, check_assumptions
from .conversion import augment, to_resnest
from .critical_points import Convexity, CriticalPoint, check_convexity, critical_point
from .features import features
from .head import Head, best_linear_predictor, linear_head
from .profile import BlockProfile, block_profile, linear_unpredictability
from .risk import OptimalPrediction, RiskGap, empirical_risk, optimal_prediction, risk_gap

__all__ = [
    "Assumptions",
    "BlockProfile",
    "Condition",
    "Convexity",
    "CriticalPoint",
    "Head",
    "OptimalPrediction",
    "RiskGap",
    "augment",
    "best_linear_predictor",
    "block_profile",
    "check_assumptions",
    "check_convexity",
    "critical_point",
    "empirical_risk",
    "features",
    "linear_head",
    "linear_unpredictability",
    "optimal_prediction",
    "risk_gap",
    "to_resnest",
]
