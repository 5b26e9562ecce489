"""A Ray cluster of two nodes of one core each, the second of which comes and goes at a word.

It has a process of its own: Ray's threads stay in the process that starts nodes, whose forks
(loaders of other tests) may crash from then on.

    python tests/support/ray_cluster.py

prints the cluster's address and the other node's id. `lose` on stdin takes the other node away,
`add` brings another, whose id is printed; the end of stdin ends all.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Run until stdin ends."""
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
    made = Cluster(
        initialize_head=True,
        head_node_args={**small, "include_dashboard": False, "no_monitor": True},
    )
    other = made.add_node(**small)
    try:
        print(made.address, other.node_id, flush=True)
        for line in sys.stdin:
            if line == "lose\n":
                made.remove_node(other, allow_graceful=False)
                print("removed", flush=True)
            else:
                other = made.add_node(**small)
                print(other.node_id, flush=True)
    finally:
        made.shutdown()


if __name__ == "__main__":
    main()
