"""One federated experiment: what is run, how it is set up, and its rounds.

Read `experiment` first, which says what is run, then `setup`, which makes data, model and clients of it, and `rounds`,
the loop. In a round, `participation` asks clients, `exchange` writes their tasks, and a `fleet` has them done: in this
process by `client_runner`, on a GPU several at once in `lanes`, or in worker processes by `jobs`. What is said to other
processes is written by `wire`, as a `letter`. `replies` are checked before they are used, and
`safeguards` put `robust` rules and `privacy` between them and the method. `evaluation` tests the global model, and
`records` has the figures. Whoever wants to know what happens in a run is an `observer`, as `diagnostics` is. `ratios`
finds clients' sizes for a budget, and `problem` reads a user's own data and model.
"""
