"""Pixel TTRL's vote over complete trajectories, its exemplar and its baselines: pure functions, in numpy on the host."""

from pixelis_jax.voting.answers import NO_CLASS, answer_classes, counted_answer
from pixelis_jax.voting.baselines import (
    HARD,
    answer_consistency,
    consensus_advantages,
    majority,
    process_scoring,
    random_exemplar,
)
from pixelis_jax.voting.exemplar import exemplar, useful_calls
from pixelis_jax.voting.record import VOTE_SCHEMA, CallFidelity, Neighbour, VoteRecord, make_record, vote_from_json, vote_to_json
from pixelis_jax.voting.risk_coverage import risk_at, risk_coverage, risks_at
from pixelis_jax.voting.scores import Score, ScoreWeights, neighbour_support, score_trajectories
from pixelis_jax.voting.similarity import SimilarityWeights, operation_similarity, similarity_matrix
from pixelis_jax.voting.vote import AnswerClass, Limits, Vote, decide, softmax_weights, vote_over_trajectories

__all__ = [
    "HARD",
    "NO_CLASS",
    "VOTE_SCHEMA",
    "AnswerClass",
    "CallFidelity",
    "Limits",
    "Neighbour",
    "Score",
    "ScoreWeights",
    "SimilarityWeights",
    "Vote",
    "VoteRecord",
    "answer_classes",
    "answer_consistency",
    "consensus_advantages",
    "counted_answer",
    "decide",
    "exemplar",
    "majority",
    "make_record",
    "neighbour_support",
    "operation_similarity",
    "process_scoring",
    "random_exemplar",
    "risk_at",
    "risk_coverage",
    "risks_at",
    "score_trajectories",
    "similarity_matrix",
    "softmax_weights",
    "useful_calls",
    "vote_from_json",
    "vote_over_trajectories",
    "vote_to_json",
]
