"""The policy language: model, parsers, selectors, compiler to verdict rows, and the oracle."""
