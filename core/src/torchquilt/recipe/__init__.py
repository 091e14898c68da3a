"""A recipe: the whole intent of a composition as TOML, which a person can write, read and compare.

::

    schema = 1

    [[quantizer]]                              # the first one to claim a node keeps it
    backend = "executorch_embedding"
    global = "byte_per_row"                    # a config: the name of a preset of the backend ...

    [[quantizer]]
    backend = "xnnpack"
    global = "dynamic_int8_per_channel"

    [[quantizer.type]]
    name = "torch.nn.Linear"                   # of torch: module class, functional or ATen operator

    [quantizer.type.config.input_activation]   # ... or spelled out: a spec for each role
    dtype = "int8"
    granularity = "per_token"
    is_dynamic = true

    [quantizer.type.config.weight]
    dtype = "int8"
    quant_min = -7
    quant_max = 7
    granularity = "per_axis"
    ch_axis = 0
    symmetric = true

    [[quantizer.type]]
    class = "my_model.layers.Block"            # a module class of your own, by its full name
    config = "float"                           # ... or "float": nothing is quantized there

    [[quantizer.module]]
    name = "head"
    config = "float"

A ``[[quantizer]]`` without a backend is a composition: its parts are ``[[quantizer.quantizer]]``. What a
backend asks for by itself stays, unless a rule says otherwise. A spec has the fields of
:class:`torchquilt.QuantizationSpec`, with the same defaults.

Loading checks all that the file says by itself, and imports neither torch nor a plugin. What depends on the
installed backends is checked when the quantizers are made. The errors of both name the line and the key.

``recipe`` has the class, ``sections`` the values in it, ``toml_reader`` and ``toml_writer`` turn these from
and into TOML, ``quantizers`` into and from quantizers; ``source_location`` finds the line of a key.
Importing this package does not import torch.
"""

from torchquilt.recipe.recipe import Recipe
from torchquilt.recipe.sections import Parts, RecipePart, RecipeRule

__all__ = ["Parts", "Recipe", "RecipePart", "RecipeRule"]
