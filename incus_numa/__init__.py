"""NUMA placement for Incus and LXD hosts.

The words used everywhere in this package (a new noun is added here first):

machine     the host: its nodes, CPUs and distances.
node        always a NUMA node; a server of a cluster is a *member*.
cpu         a hardware thread, by its kernel id.
core, L3    CPUs that share a physical core, or a last-level cache; named by their lowest CPU id.
kind        performance or efficiency: of a core, on machines that have both.
huge pages  memory of a node that is set aside in pages of one size; no part of its ordinary memory.
reservation memory of a node that is kept for the host.
usable      a CPU that is online, not isolated by the kernel and not reserved by the settings.
instance    a container or virtual machine of the server.
managed     an instance that asked for `balanced`; every other one is only counted as load.
demand      what an instance needs: vCPUs, their weight, memory, huge pages, a kind of cores.
need        the demand as nodes must hold it, capped at the machine; with the nodes that it must have and its ties.
device      hardware of the host that an instance has: *wanted* by a name, found in a *slot* that has a node.
ties        what draws an instance to nodes or drives it away: its devices, its group, those that it avoids.
group       instances that belong on the same or on near nodes, by a name of their own.
exclusive   CPUs that one instance, their *owner*, has for itself.
pinned      an instance whose `limits.cpu` lists its CPUs.
policy      the rule that chooses nodes for an instance.
record      where the server's configuration says which nodes an instance has: `volatile.cpu.nodes`.
vCPU thread a thread of QEMU that runs the guest; *evidence* is what tells it from the *others*.
mark        a decision that is kept with a cgroup or process, for as long as that lives.
placement   the nodes, CPUs and memory nodes (mems) decided for an instance.
observed    what an instance has now, as its configuration and its cgroup say.
decided     what we decided for an instance since it started; what it has without that is the server's choice.
load        committed vCPU weight over usable CPUs, of a node or of a CPU.
sample      one reading of the kernel's counters; two of them make a *rate*, which is smoothed.
measured    of load: CPUs that are kept busy over usable CPUs, of a node; the CPUs themselves, of an instance.
imbalance   the highest measured load of a node over the mean one.
potential   what every move by measured load lowers, so that no sequence of moves can come back; its fall is the *gain*.
price       what a move costs, in the potential's unit: a constant, and the memory that follows.
hold        why an instance on a node that is too loaded stays there.
change      moves that are made together: one instance, a group, or two that change places; *movers* are who may.
verdict     what `explain` says about moving one instance.
locality    the part of an instance's memory that is on its own nodes.
journal     the moves that were made, on disk; bounded, and safe to delete.
width       how many nodes a set has.
cost        what sets of one width are compared by: load, distance, ties.
proof       what a search for nodes has shown: its cost, a bound of it, the least width.
ledger      what is committed on each node and CPU while a plan is made.
levelling   lowering the highest load of a plan of many by changing who is where.
plan        placements and rejections for all managed instances.
rejection   a refusal, as a value: instance, reason, a sentence with numbers.
move        a change of nodes of an instance that had a placement.
step        one change that brings an instance nearer to its placement.
snapshot    everything a plan is decided from.
pass        observe, decide, apply; its outcome is a report.
notice      what the service tells of its own work while it happens; metrics count notices.
facts       what is known about the host or an instance, as plain values: for commands and for the API.
gauge       a number of this moment, for metrics.
overrides   tables of settings that the API was told to have over those of the file.
trigger     a hint to look again: an event, a timer, a changed file, a signal.
trace       arrivals and departures that are replayed; one of its instances is a *stay*.
peer        another program whose documented rule is replayed beside our policies.
steward     a policy of a replay that also moves what runs.
want        CPUs that a simulated instance would keep busy; its *share* is what it gets.
"""

__version__ = "0.1.0"
