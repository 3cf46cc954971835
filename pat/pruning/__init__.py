"""pat.pruning"""
