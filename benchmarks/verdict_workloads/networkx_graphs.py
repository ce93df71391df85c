"""Graphs in networkx: two centralities, and the critical path of a schedule."""

import random

import networkx as nx


def page_rank_input(n: int = 30_000) -> nx.DiGraph:
    return nx.DiGraph(nx.barabasi_albert_graph(n, 4, seed=1))


def page_rank(graph: nx.DiGraph) -> dict[int, float]:
    return nx.pagerank(graph, alpha=0.85)


def brokers_input(n: int = 4000) -> nx.Graph:
    return nx.barabasi_albert_graph(n, 4, seed=2)


def brokers(graph: nx.Graph) -> list[int]:
    centrality = nx.betweenness_centrality(graph, k=30, seed=0)
    return sorted(centrality, key=centrality.get, reverse=True)[:10]


def critical_path_input(n: int = 40_000) -> nx.DiGraph:
    """Tasks, each after a few earlier ones; the weight of an edge is the duration of its first task, in hours."""
    rng, graph = random.Random(3), nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from(
        (before, task, 1 + (before * 7919) % 40) for task in range(1, n) for before in {rng.randrange(task) for _ in range(3)}
    )
    return graph


def critical_path(schedule: nx.DiGraph) -> list[int]:
    return nx.dag_longest_path(schedule, weight="weight")


def communities_input(n: int = 1500) -> nx.Graph:
    """Friends within groups of 30, and some between them."""
    return nx.planted_partition_graph(n // 30, 30, 0.4, 0.002, seed=4)


def communities(friends: nx.Graph) -> list[set[int]]:
    return nx.community.louvain_communities(friends, seed=1)
