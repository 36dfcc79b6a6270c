"""Prune one model to a budget, and report and store what came out.

`prune` is the entrance. It checks the model (`prunable`) and the request (`request`), works on a copy (`own_copy`), and
goes step by step (`stepping`): the groups are scored (`scoring`), sorted (`schedule`, `measuring`), and a plan is found
that meets the budget (`planning`, `meeting`, `budget`); the plan is applied and repaired (`repair/`). `result`,
`report`, `layers_report`, `reasons` and `tables` say what came out, `progress` what is being done. `finetuning`,
`export` and `layer_picture` are what ``hfp prune`` offers beside. `choices` holds names that the command line must know
without loading torch.
"""
