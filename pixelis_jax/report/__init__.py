"""One self-contained HTML page from work directories and traces.

Opens without JAX, without a network, without files beside it.
"""

from pixelis_jax.report.page import write_report as write_report
