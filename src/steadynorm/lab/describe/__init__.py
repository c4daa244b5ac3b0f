"""Text, tables and figures that the reports of all experiments share.

A report by arms is declared: quantities as :data:`arms.Reduction` of one network, :class:`arms.Arm` for what they are
over the seeds, columns by :mod:`tables`, claims by :func:`claims.with_and_without`, charts by :mod:`figures`.
"""
