"""Checkpoints in other forms: conversion, merging of adapters, ONNX."""
