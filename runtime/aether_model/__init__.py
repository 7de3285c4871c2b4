"""Actor models in YAML with CEL: checked when they are applied, compiled once, run on the hot path.

`check` finds every problem of a model, `compile` turns a sound one into a `CompiledModel`, `decide` runs it: decide and
apply are pure, synchronous and without a clock, so replay can never disagree with what happened live. The operator imports
the first two, the runtime all of them, and both therefore refuse exactly the same models.

Reading order: `variables` (what an expression sees), `cel` (the engine), `fields` (JSON Schema), `check`, `compile`, `decide`.
"""
