"""Ready-made constraints for support tables: conditions beyond operators and specs.

Each is a :class:`torchquilt.support.table.Constraint`, or a function that makes one. They read the
shapes, dtypes, arguments and constants that export recorded, and never write.
"""

from __future__ import annotations

from torchquilt.support.constraints.calls import (
    BY_A_NUMBER as BY_A_NUMBER,
)
from torchquilt.support.constraints.calls import (
    CEIL_MODE_IS_STATIC as CEIL_MODE_IS_STATIC,
)
from torchquilt.support.constraints.calls import (
    EVERY_PIXEL as EVERY_PIXEL,
)
from torchquilt.support.constraints.calls import (
    MEAN_OVER_IMAGE as MEAN_OVER_IMAGE,
)
from torchquilt.support.constraints.calls import (
    NO_ALPHA as NO_ALPHA,
)
from torchquilt.support.constraints.calls import (
    NO_THIRD as NO_THIRD,
)
from torchquilt.support.constraints.calls import (
    POOLS_TO_ONE_PIXEL as POOLS_TO_ONE_PIXEL,
)
from torchquilt.support.constraints.calls import (
    STATIC_INDEX as STATIC_INDEX,
)
from torchquilt.support.constraints.calls import (
    STATIC_START as STATIC_START,
)
from torchquilt.support.constraints.calls import (
    STEP_OF_ONE as STEP_OF_ONE,
)
from torchquilt.support.constraints.calls import (
    TWO_BOUNDS as TWO_BOUNDS,
)
from torchquilt.support.constraints.calls import (
    UNSCALED as UNSCALED,
)
from torchquilt.support.constraints.calls import (
    ZEROS as ZEROS,
)
from torchquilt.support.constraints.calls import (
    keyword_is as keyword_is,
)
from torchquilt.support.constraints.tensors import (
    DIMENSIONS as DIMENSIONS,
)
from torchquilt.support.constraints.tensors import (
    FLOAT32 as FLOAT32,
)
from torchquilt.support.constraints.tensors import (
    FLOAT32_OR_16 as FLOAT32_OR_16,
)
from torchquilt.support.constraints.tensors import (
    IMAGE as IMAGE,
)
from torchquilt.support.constraints.tensors import (
    ONE_RANK as ONE_RANK,
)
from torchquilt.support.constraints.tensors import (
    ONE_SAMPLE as ONE_SAMPLE,
)
from torchquilt.support.constraints.tensors import (
    ONE_UNKNOWN as ONE_UNKNOWN,
)
from torchquilt.support.constraints.tensors import (
    REPEATS_NOTHING as REPEATS_NOTHING,
)
from torchquilt.support.constraints.tensors import (
    SIGNAL as SIGNAL,
)
from torchquilt.support.constraints.tensors import (
    STATIC_SHAPE as STATIC_SHAPE,
)
from torchquilt.support.constraints.tensors import (
    TWO_OR_MORE as TWO_OR_MORE,
)
from torchquilt.support.constraints.tensors import (
    input_rank as input_rank,
)
from torchquilt.support.constraints.tensors import (
    one_dtype as one_dtype,
)
from torchquilt.support.constraints.value_ranges import (
    NO_NORMALIZATION as NO_NORMALIZATION,
)
from torchquilt.support.constraints.value_ranges import (
    NOT_A_MASK as NOT_A_MASK,
)
from torchquilt.support.constraints.weights import (
    BIAS_OF_CHANNELS as BIAS_OF_CHANNELS,
)
from torchquilt.support.constraints.weights import (
    CONSTANT_WEIGHT as CONSTANT_WEIGHT,
)
from torchquilt.support.constraints.weights import (
    EVEN_INPUTS as EVEN_INPUTS,
)
from torchquilt.support.constraints.weights import (
    EVEN_PADDING as EVEN_PADDING,
)
from torchquilt.support.constraints.weights import (
    MATRIX as MATRIX,
)
from torchquilt.support.constraints.weights import (
    NOT_DEPTHWISE as NOT_DEPTHWISE,
)
from torchquilt.support.constraints.weights import (
    NOT_POINTWISE as NOT_POINTWISE,
)
from torchquilt.support.constraints.weights import (
    ONE_GROUP as ONE_GROUP,
)
from torchquilt.support.constraints.weights import (
    PADS_IMAGE as PADS_IMAGE,
)
from torchquilt.support.constraints.weights import (
    POINTWISE as POINTWISE,
)
from torchquilt.support.constraints.weights import (
    SEVERAL_GROUPS as SEVERAL_GROUPS,
)
from torchquilt.support.constraints.weights import (
    divides_into_groups as divides_into_groups,
)
