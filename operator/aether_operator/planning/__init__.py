"""Decides who holds what. Pure: no clock, no network; time and ids come in as values.

snapshot   what is known of the cluster at one moment
relevance  which changes are worth a plan
liveness   which pods may be trusted with actors, and which are surely gone
rules      what an actor asks of its pod
affinity   which pods suit an actor
placement  which pod takes which actor
pace       how many actors may move at once, and how fast
budgets    what is left of that during one plan
rebalance  which actors move for the sake of an even load
placer     gives each mover its pod
damping    which pods flap
deletion_cost  which pods a scale-down shall take
standing   what becomes of each actor, before anybody is placed
endings    finalizers and purges
statuses   what an actor's status says, and the words for it
plan       what a plan consists of
planner    from a snapshot to a plan
render     a plan in words
checker    refuses a plan that breaks a rule, whoever wrote the planner
"""
