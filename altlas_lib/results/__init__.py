"""What a chapter found, as a file that the report can trust: typed, versioned, with where each number comes from."""

# ruff: noqa: F401 (these names are the package's face)
from .arrays import ArrayOperation, ArrayTrace, HiddenTransfer, OperationKind
from .environment import Ceilings, EnvironmentResult, Finding, Licence
from .hotspots import Advice, Candidate, HotspotsResult, Projection, ProjectionAccuracy, Route, RouteKind, RouteStanding
from .inference import Agreement, Calibration, Engine, Forward, InferenceResult, Latency, Variant
from .profile import Alternative, FunctionTime, LineTime, Origin, TimeClass, WorkloadProfile
from .provenance import LARGEST_OTHER_LOAD, ChapterResult, DataSource, FigureFile, Provenance, ResultError, git_state
from .quantity import Basis, Model, Quantity, first_problem, format_value
from .serving import Kill, LoadPoint, ServingResult, sustained_per_s
from .similarity import SimilarityResult, Step, Timing, Validation
from .training import Epoch, GpuFit, Kept, MemoryPlan, Metric, Quality, Remedy, TrainingResult

CHAPTERS = (EnvironmentResult, HotspotsResult, SimilarityResult, TrainingResult, InferenceResult, ServingResult)
