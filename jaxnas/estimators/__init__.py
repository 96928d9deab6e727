"""Estimators: what a move would do, without making it."""

from jaxnas.estimators.gauss_newton import gauss_newton as gauss_newton
