/* What compilers seldom write in 32-bit code; arguments come as FIRST and SECOND say, each entry is NOP5. */
	.text
	.macro first to
	FIRST \to
	.endm

	.globl counted_loop
	.type counted_loop, @function
counted_loop:				# sum of 1..n by `loop`
	NOP5
	first %ecx
	and $0x3f, %ecx
	xor %eax, %eax
	jecxz 2f
1:	add %ecx, %eax
	loop 1b
2:	ret
	.size counted_loop, . - counted_loop

	.globl conditional_tail
	.type conditional_tail, @function
conditional_tail:			# its tail jump finds the arguments where they are
	NOP5
	first %ecx
	test $1, %ecx
	jnz counted_loop
	lea 1(%ecx,%ecx,4), %eax
	jcxz 3f
	xor $0x55, %eax
3:	ret
	.size conditional_tail, . - conditional_tail

	.globl serialises
	.type serialises, @function
serialises:				# returns from no interrupt to the next instruction, as sync_core() does
	NOP5
	first %eax
	pushf
	push %cs
	push $1f
	iret
1:	lea 3(%eax,%eax,2), %eax
	ret
	.size serialises, . - serialises

	.globl drops
	.type drops, @function
drops:					# called by drops_both: takes its argument off the stack itself
	mov 4(%esp), %eax
	lea (%eax,%eax,2), %eax
	ret $4
	.size drops, . - drops

	.globl drops_both
	.type drops_both, @function
drops_both:
	NOP5
	first %ecx
	push %ebp
	mov %esp, %ebp
	push %ecx
	call drops
	mov %ebp, %esp
	pop %ebp
	ret
	.size drops_both, . - drops_both

	.globl learns
	.type learns, @function
learns:					# its own place, in two ways, as the original's
	NOP5
	call 1f
1:	pop %ecx
	call __x86.get_pc_thunk.dx
2:	lea -(2b - 1b)(%edx), %eax
	sub %ecx, %eax
	add %ecx, %eax
	ret
	.size learns, . - learns

	.type __x86.get_pc_thunk.dx, @function
__x86.get_pc_thunk.dx:
	mov (%esp), %edx
	ret
	.size __x86.get_pc_thunk.dx, . - __x86.get_pc_thunk.dx

	.globl keeps_everything
	.type keeps_everything, @function
keeps_everything:			# no ftrace site: all registers and the flags belong to the caller
	lea 1(%ebx,%ebx), %eax
	ret
	.size keeps_everything, . - keeps_everything

	.globl keeps_tail
	.type keeps_tail, @function
keeps_tail:
	lea 1(%ebx), %ebx
	jmp *where
	.size keeps_tail, . - keeps_tail

	.globl watches
	.type watches, @function
watches:				# returns 0 if ecx, edx and the carry and zero flags survive two calls
	push %ebx
	mov $0x11223344, %ecx
	mov $0x55667788, %edx
	xor %ebx, %ebx			# sets the zero flag
	stc
	call keeps_everything
	jnc 4f
	jnz 4f
	call keeps_tail
	jnc 4f
	jnz 4f
	cmp $0x11223344, %ecx
	jne 4f
	cmp $0x55667788, %edx
	jne 4f
	xor %eax, %eax
	pop %ebx
	ret
4:	mov $1, %eax
	pop %ebx
	ret
	.size watches, . - watches

	.irp register, eax, ecx, edx, ebx, esi, edi, ebp
	.globl __x86_indirect_thunk_\register
	.type __x86_indirect_thunk_\register, @function
__x86_indirect_thunk_\register:
	jmp *%\register
	.size __x86_indirect_thunk_\register, . - __x86_indirect_thunk_\register
	.endr

	.data
where:	.long keeps_everything
	.section .note.GNU-stack,"",@progbits
