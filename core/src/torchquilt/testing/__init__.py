"""The conformance kit: what a backend claims, held against what it does.

The author of a plugin installs ``torchquilt[testing]`` and runs, from any folder::

    pytest --pyargs torchquilt.testing --torchquilt-backend=NAME

Everything that is tested follows from the backend's own support table. Each row of it is annotated and
converted, compared with the float operator, trained, asked for what it does not claim, brought to both sides
of its constraints, and composed with a quantizer that knows nothing of it. A table of what was found is
printed at the end.

===============  ====================================================================================
file             what is in it
===============  ====================================================================================
``plugin``       the options of pytest, the hook for lowering, and printing the table at the end
``lowering``     the type of a function that lowers a model and runs it
``conftest``     one test for each row: what is parametrized, and the fixtures
``subject``      the backend under test
``configs``      the configs that a row takes, and some that it does not
``operators``    ways to call each operator that torchquilt knows
``examples``     models made of these calls, for a row
``trials``       one model through the flow, and what is asked of the result
``bench``        the backend with a model for each of its rows
``limits``       a model held against the constraints of a row
``graphs``       small graphs of all rows together
``drawing``      drawing such graphs, trying them, and making those that fail smaller
``pairs``        graphs of two rows each
``process``      another process, which may die of what it runs
``specs``        the spec that an annotation comes down to
``probing``      what a quantizer without a table does with these calls, as capabilities
``probe_cache``  keeps such capabilities
``coverage``     the table that is printed
``test_*``       the tests
===============  ====================================================================================

Three things can be supplied. A class may have ``conformance_examples``: the name of a pattern → a function
that returns ``(module, inputs)``, or a tuple of such functions; it is needed for operators that the kit
cannot call by itself, and for constraints that none of its models breaks. A pytest plugin may implement the
hook ``pytest_torchquilt_lowering``, see :mod:`torchquilt.testing.plugin`. And a class may have
``conformance_exemptions``: what cannot be tested (``target:NAME``, ``constraint:CODE``) → the reason.
"""
