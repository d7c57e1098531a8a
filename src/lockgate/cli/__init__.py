"""The command line: arguments in, sentences, tables and JSON out."""
