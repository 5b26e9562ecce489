"""A Ray cluster of two nodes of one core each: of both, or of the first alone, at a word on stdin.

It has a process of its own: Ray's threads stay in the process that starts nodes, whose forks
(loaders of other tests) may crash from then on.

    python tests/support/ray_cluster.py

prints the cluster's address and the other node's id; a line on stdin takes the other node away,
the end of stdin ends both.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Run until stdin ends."""
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    other = made.add_node(**small)
    try:
        print(made.address, other.node_id, flush=True)
        for _ in sys.stdin:
            made.remove_node(other, allow_graceful=False)
            print("removed", flush=True)
    finally:
        made.shutdown()


if __name__ == "__main__":
    main()
