"""Column encodings: conversion of single values to bytes and back."""
