"""Tables with columns of every kind: a codec learned from training rows, and densities that speak DataFrames."""

from diffeo.tables.fit import fit_table as fit_table
from diffeo.tables.model import TableDensity as TableDensity
from diffeo.tables.schema import Schema as Schema
from diffeo.tables.schema import learn_schema as learn_schema
