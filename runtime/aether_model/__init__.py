"""Actor models, in YAML with CEL or in Python: checked when they are applied, compiled once, run on the hot path.

`model` is what every model is: decide and apply are pure, synchronous and without a clock, so replay can never disagree with
what happened live; commands and events cross as raw JSON. In CEL, `check` finds every problem of a model, `compile` turns a
sound one into a `CompiledModel`, `decide` runs it; the operator imports the first two, the runtime all of them, and both
therefore refuse exactly the same models. In Python, `python` is what an author writes, `python_compile` checks it,
`python_model` runs it. `load` chooses between the two for a resource.

Reading order: `model`; `variables` (what an expression sees), `cel` (the engine), `fields` (JSON Schema), `check`, `compile`,
`decide`; `python`, `python_model`; `schedule` and `remind` (reminders).
"""
