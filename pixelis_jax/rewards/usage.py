"""A bonus for using tools at all, as a peer to curiosity."""


def usage(valid_calls: int, tool_share: float, *, target: float = 0.3, most_calls: int = 1, fine: float = 0.1) -> float:
    """Computes `max(target - share, 0) * [calls >= 1] + fine * min(most_calls - calls, 0)`.

    The curiosity reward of Pixel Reasoner (https://arxiv.org/abs/2505.15966): as long as a question's episodes rarely use tools,
    using one is paid; many calls are fined.

    Args:
      valid_calls: of the episode.
      tool_share: of the episodes of its question, those with a valid call.
      target: share from which on nothing is paid.
      most_calls: calls that are not fined.
      fine: for each further call.

    Returns:
      The bonus, in (-inf, target].
    """
    paid = max(target - tool_share, 0.0) if valid_calls else 0.0
    return paid + fine * min(most_calls - valid_calls, 0)
