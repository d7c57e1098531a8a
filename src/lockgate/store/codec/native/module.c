/* lockgate.store.codec._kernel: the kernel as a Python module. Buffers in, bytes out, no GIL held. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdlib.h>

#include "kernel.h"

static PyObject *fail(int status)
{
    if (status == LG_NOMEM) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, "the frame is corrupt");
    return NULL;
}

static PyObject *finish(lg_bytes *out, int status)
{
    PyObject *result = NULL;
    if (out->failed) status = LG_NOMEM;
    if (!status) result = PyBytes_FromStringAndSize((const char *)out->data, (Py_ssize_t)out->size);
    if (!out->lent) free(out->data);
    return status ? fail(status) : result;
}

static lg_arena arena(Py_buffer *scratch)
{
    return (lg_arena){scratch->buf, (size_t)scratch->len, 0};
}

/* The result's memory, from what the arena has beside `size` bytes' work: growing would touch new pages. */
static lg_bytes result(lg_arena *lent, Py_ssize_t size)
{
    lg_bytes out = {0};
    size_t work = lg_arena_size((size_t)size);
    if (lent->size <= work + 64) return out;
    out.room = lent->size - work - 64;
    out.data = lg_alloc(lent, out.room);
    out.lent = out.data != NULL;
    if (!out.lent) out.room = 0;
    return out;
}

static int whole(Py_buffer *view, int kind, Py_ssize_t *count)
{
    size_t width = lg_width(kind);
    if (!width || view->len % (Py_ssize_t)width ||
        view->len / (Py_ssize_t)width > (Py_ssize_t)LG_MAX_ELEMENTS) {
        PyErr_SetString(PyExc_ValueError, "the buffer holds no whole elements of this kind, or too many");
        return -1;
    }
    *count = view->len / (Py_ssize_t)width;
    return 0;
}

static PyObject *delta_encode(PyObject *self, PyObject *args)
{
    Py_buffer data, base, scratch;
    int kind, level, status = LG_OK;
    unsigned int group;
    Py_ssize_t count;
    lg_bytes out = {0};
    lg_arena lent;
    PyObject *coded = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*iIw*i", &data, &base, &kind, &group, &scratch, &level)) return NULL;
    if (whole(&data, kind, &count)) goto wrong;
    if (base.len != data.len || !group || group > LG_MAX_GROUP) {
        PyErr_SetString(PyExc_ValueError, "the base has another size than the data, or the group is none");
        goto wrong;
    }
    lent = arena(&scratch);
    out = result(&lent, data.len);
    Py_BEGIN_ALLOW_THREADS
    status = lg_delta_encode(&out, data.buf, base.buf, (size_t)count, kind, group, lent, level);
    Py_END_ALLOW_THREADS
    coded = finish(&out, status);
wrong:
    PyBuffer_Release(&data);
    PyBuffer_Release(&base);
    PyBuffer_Release(&scratch);
    return coded;
}

static PyObject *delta_decode(PyObject *self, PyObject *args)
{
    Py_buffer payload, base, out, scratch;
    int kind, level, status = LG_OK;
    Py_ssize_t count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*iw*i", &payload, &base, &out, &kind, &scratch, &level)) return NULL;
    if (whole(&out, kind, &count)) {
        status = 1;
    } else if (base.len != out.len) {
        PyErr_SetString(PyExc_ValueError, "the base has another size than the data");
        status = 1;
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = lg_delta_decode(payload.buf, (size_t)payload.len, base.buf, out.buf, (size_t)count, kind,
                                 arena(&scratch), level);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    PyBuffer_Release(&base);
    PyBuffer_Release(&out);
    PyBuffer_Release(&scratch);
    if (status == 1) return NULL;
    if (status) return fail(status);
    Py_RETURN_NONE;
}

static PyObject *planes_encode(PyObject *self, PyObject *args)
{
    Py_buffer data, scratch;
    int kind, level, status = LG_OK;
    Py_ssize_t count;
    lg_bytes out;
    lg_arena lent;
    PyObject *coded;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iw*i", &data, &kind, &scratch, &level)) return NULL;
    if (whole(&data, kind, &count)) {
        PyBuffer_Release(&data);
        PyBuffer_Release(&scratch);
        return NULL;
    }
    lent = arena(&scratch);
    out = result(&lent, data.len);
    Py_BEGIN_ALLOW_THREADS
    status = lg_planes_encode(&out, data.buf, (size_t)count, kind, lent, level);
    Py_END_ALLOW_THREADS
    coded = finish(&out, status);
    PyBuffer_Release(&data);
    PyBuffer_Release(&scratch);
    return coded;
}

static PyObject *planes_decode(PyObject *self, PyObject *args)
{
    Py_buffer payload, out, scratch;
    int kind, level, status = LG_OK;
    Py_ssize_t count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*iw*i", &payload, &out, &kind, &scratch, &level)) return NULL;
    if (whole(&out, kind, &count)) {
        status = 1;
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = lg_planes_decode(payload.buf, (size_t)payload.len, out.buf, (size_t)count, kind,
                                  arena(&scratch), level);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    PyBuffer_Release(&out);
    PyBuffer_Release(&scratch);
    if (status == 1) return NULL;
    if (status) return fail(status);
    Py_RETURN_NONE;
}

static PyObject *told(int status)
{
    return status == LG_OK || status == LG_DIFFERS ? PyBool_FromLong(status == LG_OK) : fail(status);
}

static PyObject *delta_holds(PyObject *self, PyObject *args)
{
    Py_buffer payload, base, data, scratch;
    int kind, level, status = LG_OK, wrong;
    Py_ssize_t count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*iw*i", &payload, &base, &data, &kind, &scratch, &level)) return NULL;
    wrong = whole(&data, kind, &count);
    if (!wrong && base.len != data.len) {
        PyErr_SetString(PyExc_ValueError, "the base has another size than the data");
        wrong = 1;
    }
    if (!wrong) {
        Py_BEGIN_ALLOW_THREADS
        status = lg_delta_compare(payload.buf, (size_t)payload.len, base.buf, data.buf, (size_t)count, kind,
                                  arena(&scratch), level);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    PyBuffer_Release(&base);
    PyBuffer_Release(&data);
    PyBuffer_Release(&scratch);
    return wrong ? NULL : told(status);
}

static PyObject *planes_holds(PyObject *self, PyObject *args)
{
    Py_buffer payload, data, scratch;
    int kind, level, status = LG_OK, wrong;
    Py_ssize_t count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*iw*i", &payload, &data, &kind, &scratch, &level)) return NULL;
    wrong = whole(&data, kind, &count);
    if (!wrong) {
        Py_BEGIN_ALLOW_THREADS
        status = lg_planes_compare(payload.buf, (size_t)payload.len, data.buf, (size_t)count, kind,
                                   arena(&scratch), level);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    PyBuffer_Release(&data);
    PyBuffer_Release(&scratch);
    return wrong ? NULL : told(status);
}

static PyObject *best_level(PyObject *self, PyObject *none)
{
    (void)self;
    (void)none;
    return PyLong_FromLong(lg_best_level());
}

static PyObject *scratch_size(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    (void)self;
    if (!PyArg_ParseTuple(args, "n", &size)) return NULL;
    return PyLong_FromSize_t(lg_arena_size(size < 0 ? 0 : (size_t)size));
}

static PyMethodDef METHODS[] = {
    {"delta_encode", delta_encode, METH_VARARGS,
     "delta_encode(data, base, kind, group, scratch, level) -> bytes"},
    {"delta_decode", delta_decode, METH_VARARGS,
     "delta_decode(payload, base, out, kind, scratch, level)"},
    {"planes_encode", planes_encode, METH_VARARGS,
     "planes_encode(data, kind, scratch, level) -> bytes"},
    {"planes_decode", planes_decode, METH_VARARGS,
     "planes_decode(payload, out, kind, scratch, level)"},
    {"delta_holds", delta_holds, METH_VARARGS,
     "delta_holds(payload, base, data, kind, scratch, level) -> whether decoding gives data"},
    {"planes_holds", planes_holds, METH_VARARGS,
     "planes_holds(payload, data, kind, scratch, level) -> whether decoding gives data"},
    {"scratch_size", scratch_size, METH_VARARGS, "scratch_size(bytes of elements) -> int"},
    {"best_level", best_level, METH_NOARGS,
     "best_level() -> int: 0 scalar, 1 AVX2, 2 AVX-512, 3 with gathers"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_kernel", "The hot loops of the codecs.", -1, METHODS, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModule_Create(&MODULE);
}
